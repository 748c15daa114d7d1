// neon.cc with its vector operations laid open to the tests.
#include "neon.cc"  // NOLINT(bugprone-suspicious-include)
#include "probe.h"

namespace realm::test {

const Probe* NeonDotprodProbe() {
#if defined(REALM_NEON)
  static constexpr Probe probe = MakeProbe<NeonDotprod>();
  return &probe;
#else
  return nullptr;
#endif
}

}  // namespace realm::test
