// Running a projection on the threads of a handler.
#ifndef CPU_KERNELS_RUN_PROJECTION_H_
#define CPU_KERNELS_RUN_PROJECTION_H_

#include "projection.h"
#include "xla/ffi/api/ffi.h"

namespace realm {

void RunProjection(const Projection& projection, int helpers, xla::ffi::ThreadPool& pool);

// The same, counted in the profile.
void RunTimed(const Projection& projection, int helpers, xla::ffi::ThreadPool& pool);

}  // namespace realm

#endif  // CPU_KERNELS_RUN_PROJECTION_H_
