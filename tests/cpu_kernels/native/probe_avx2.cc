// avx2.cc with its vector operations laid open to the tests.
#include "avx2.cc"  // NOLINT(bugprone-suspicious-include)
#include "probe.h"

namespace realm::test {

const Probe* Avx2Probe() {
#if defined(REALM_AVX)
  static constexpr Probe probe = MakeProbe<Avx2>();
  return &probe;
#else
  return nullptr;
#endif
}

}  // namespace realm::test
