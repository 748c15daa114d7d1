// Which instruction sets this CPU has, asked once at run time.
#include <initializer_list>

#include "export.h"
#include "kernels.h"

namespace realm {
namespace {

bool Has(InstructionSet set) {
#if defined(__x86_64__)
  if (set == InstructionSet::kAvx512Vnni) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  }
  if (set == InstructionSet::kAvx2) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  }
#endif
  return set == InstructionSet::kPortable;
}

InstructionSet Best() {
  for (InstructionSet set : {InstructionSet::kAvx512Vnni, InstructionSet::kAvx2}) {
    if (Has(set)) return set;
  }
  return InstructionSet::kPortable;
}

}  // namespace

const Kernels* FindKernels(InstructionSet set) {
  static const InstructionSet best = Best();
  if (set == InstructionSet::kBest) set = best;
  if (!Has(set)) return nullptr;
#if defined(__x86_64__)
  if (set == InstructionSet::kAvx512Vnni) return Avx512VnniKernels();
  if (set == InstructionSet::kAvx2) return Avx2Kernels();
#endif
  return PortableKernels();
}

}  // namespace realm

// Whether this CPU runs the kernels of an instruction set, numbered as in kernels.h.
REALM_EXPORT bool realm_has_instruction_set(int32_t set) {
  return realm::FindKernels(static_cast<realm::InstructionSet>(set)) != nullptr;
}
