// The kernels for x86-64 with AVX2, FMA and F16C.
#include "macros.h"
#if defined(REALM_AVX)

#include "avx2.h"
#include "kernel_templates.h"

namespace realm {
namespace {

constexpr Kernels kKernels = MakeKernels<Avx2>();

}  // namespace

const Kernels* Avx2Kernels() { return &kKernels; }

}  // namespace realm

#endif  // defined(REALM_AVX)
