// Which instruction sets this CPU has, asked once at run time.
#include <atomic>
#include <initializer_list>

#include "export.h"
#include "kernels.h"

#if defined(REALM_AVX)
#include <cpuid.h>
#endif
#if defined(REALM_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(REALM_NEON) && defined(__linux__)
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

#if defined(REALM_AVX_VNNI)
bool HasAvxVnni() {
  constexpr unsigned kAvxVnni = 1u << 4;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & kAvxVnni) != 0;
}
#endif

#if defined(REALM_AMX)
// Eight registers of 16 rows of 64 bytes, and the system's permission to use them, which holds for all threads. Linux
// gives it only where it saves the registers.
bool HasMatrixUnit() {
  constexpr unsigned kTileAndInt8 = 3u << 24;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kTileAndInt8) != kTileAndInt8) return false;
  if (__get_cpuid_count(0x1d, 1, &a, &b, &c, &d) == 0) return false;
  if ((b & 0xffffu) < 64 || b >> 16 < 8 || (c & 0xffffu) < 16) return false;
  constexpr int64_t kRequestPermission = 0x1023;
  constexpr int64_t kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

bool Has(InstructionSet set) {
#if defined(REALM_AVX_VNNI)
  if (set == InstructionSet::kAvxVnni) {
    static const bool has = Has(InstructionSet::kAvx2) && HasAvxVnni();
    return has;
  }
#endif
#if defined(REALM_AMX)
  if (set == InstructionSet::kAmx) {
    static const bool has = Has(InstructionSet::kAvx512Vnni) && HasMatrixUnit();
    return has;
  }
#endif
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
  for (InstructionSet set : {InstructionSet::kAmx, InstructionSet::kAvx512Vnni, InstructionSet::kAvxVnni,
                             InstructionSet::kAvx2, InstructionSet::kNeonDotprod}) {
    if (Has(set)) return set;
  }
  return InstructionSet::kPortable;
}

// The set that was asked for in the place of the best one.
std::atomic<InstructionSet> preferred = InstructionSet::kBest;

InstructionSet Resolved(InstructionSet set) {
  static const InstructionSet best = Best();
  if (set == InstructionSet::kBest) set = preferred;
  return set == InstructionSet::kBest ? best : set;
}

}  // namespace

const Kernels* FindKernels(InstructionSet set) {
  set = Resolved(set);
  if (!Has(set)) return nullptr;
#if defined(REALM_AMX)
  if (set == InstructionSet::kAmx) return AmxKernels();
#endif
#if defined(REALM_AVX_VNNI)
  if (set == InstructionSet::kAvxVnni) return AvxVnniKernels();
#endif
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

// The set that kernels run on when they are called for the best one.
REALM_EXPORT int32_t realm_best_instruction_set() {
  return static_cast<int32_t>(realm::Resolved(realm::InstructionSet::kBest));
}

// Makes that a set that this CPU has.
REALM_EXPORT void realm_prefer_instruction_set(int32_t set) {
  realm::preferred = static_cast<realm::InstructionSet>(set);
}
