// The kernels for x86-64 with AVX-512 VNNI.
#include "macros.h"
#if defined(REALM_AVX)

#include "avx512_vnni.h"
#include "kernel_templates.h"

namespace realm {
namespace {

constexpr Kernels kKernels = MakeKernels<Avx512Vnni>();

}  // namespace

const Kernels* Avx512VnniKernels() { return &kKernels; }

}  // namespace realm

#endif  // defined(REALM_AVX)
