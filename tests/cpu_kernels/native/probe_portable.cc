// portable.cc with its vector operations laid open to the tests.
#include "portable.cc"  // NOLINT(bugprone-suspicious-include)
#include "probe.h"

namespace realm::test {

const Probe* PortableProbe() {
  static constexpr Probe probe = MakeProbe<Portable>();
  return &probe;
}

}  // namespace realm::test
