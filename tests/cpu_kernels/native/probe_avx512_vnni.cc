// avx512_vnni.cc with its vector operations laid open to the tests.
#include "avx512_vnni.cc"  // NOLINT(bugprone-suspicious-include)
#include "probe.h"

namespace realm::test {

const Probe* Avx512VnniProbe() {
#if defined(REALM_AVX)
  static constexpr Probe probe = MakeProbe<Avx512Vnni>();
  return &probe;
#else
  return nullptr;
#endif
}

}  // namespace realm::test
