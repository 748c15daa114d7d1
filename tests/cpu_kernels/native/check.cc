// The numbers that the tests draw.
#include "check.h"

#include <limits>

namespace realm::test {

std::vector<uint8_t> Random::Bytes(size_t count) {
  std::vector<uint8_t> bytes(count);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(engine_() >> 13);
  return bytes;
}

std::vector<float> SpecialFloats() {
  using Limits = std::numeric_limits<float>;
  std::vector<float> floats;
  for (float magnitude : {0.0f,          Limits::denorm_min(),
                          1e-40f,        Limits::min(),
                          1e-20f,        0.49999997f,
                          0.5f,          0.50000006f,
                          1.0f,          1.5f,
                          2.5f,          85.9f,
                          86.0f,         86.5f,
                          127.5f,        8388607.5f,
                          16777217.0f,   1e20f,
                          Limits::max(), Limits::infinity()}) {
    floats.push_back(magnitude);
    floats.push_back(-magnitude);
  }
  floats.push_back(Limits::quiet_NaN());
  return floats;
}

}  // namespace realm::test
