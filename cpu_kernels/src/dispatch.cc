// Which instruction sets this CPU has, asked once at run time.
#include <initializer_list>

#include "export.h"
#include "kernels.h"

#if defined(REALM_NEON) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(REALM_NEON) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace realm {
namespace {

#if defined(REALM_NEON)
bool HasDotProducts() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
  int present = 0;
  size_t size = sizeof present;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &present, &size, nullptr, 0) == 0 && present != 0;
#else
  return false;
#endif
}
#endif

bool Has(InstructionSet set) {
#if defined(REALM_AVX)
  if (set == InstructionSet::kAvx512Vnni) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  }
  if (set == InstructionSet::kAvx2) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  }
#elif defined(REALM_NEON)
  if (set == InstructionSet::kNeonDotprod) return HasDotProducts();
#endif
  return set == InstructionSet::kPortable;
}

InstructionSet Best() {
  for (InstructionSet set : {InstructionSet::kAvx512Vnni, InstructionSet::kAvx2, InstructionSet::kNeonDotprod}) {
    if (Has(set)) return set;
  }
  return InstructionSet::kPortable;
}

}  // namespace

const Kernels* FindKernels(InstructionSet set) {
  static const InstructionSet best = Best();
  if (set == InstructionSet::kBest) set = best;
  if (!Has(set)) return nullptr;
#if defined(REALM_AVX)
  if (set == InstructionSet::kAvx512Vnni) return Avx512VnniKernels();
  if (set == InstructionSet::kAvx2) return Avx2Kernels();
#elif defined(REALM_NEON)
  if (set == InstructionSet::kNeonDotprod) return NeonDotprodKernels();
#endif
  return PortableKernels();
}

}  // namespace realm

// Whether this CPU runs the kernels of an instruction set, numbered as in kernels.h.
REALM_EXPORT bool realm_has_instruction_set(int32_t set) {
  return realm::FindKernels(static_cast<realm::InstructionSet>(set)) != nullptr;
}
