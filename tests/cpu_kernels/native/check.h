// Tests in a list of their own, checks that say what they compared, and the numbers that the tests draw.
#ifndef TESTS_CPU_KERNELS_NATIVE_CHECK_H_
#define TESTS_CPU_KERNELS_NATIVE_CHECK_H_

#include <cstdint>
#include <cstring>
#include <random>
#include <sstream>
#include <string>
#include <vector>

namespace realm::test {

struct Test {
  const char* name;
  void (*run)();
};

std::vector<Test>& Tests();

struct Registration {
  Registration(const char* name, void (*run)()) { Tests().push_back({name, run}); }
};

// REALM_TEST(WhatHolds) { ... } joins the list that main runs.
#define REALM_TEST(name)                                                     \
  static void name();                                                        \
  static const ::realm::test::Registration name##_registration(#name, name); \
  static void name()

// Counts a failure of the test that is running; the first few of a test are printed.
void Fail(const std::string& message);

template <class... Parts>
void Check(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  message.precision(9);
  (message << ... << parts);
  Fail(message.str());
}

// Same bits, but one NaN is as good as another: CPUs differ in which they make.
inline bool Same(float a, float b) { return (a != a && b != b) || std::memcmp(&a, &b, sizeof a) == 0; }

// Each of `count` floats equals its partner bit for bit; `parts` say where they come from.
template <class... Parts>
void CheckSame(const float* got, const float* expected, size_t count, const Parts&... parts) {
  for (size_t i = 0; i < count; ++i) {
    if (!Same(got[i], expected[i])) {
      return Check(false, parts..., ": [", i, "] is ", got[i], ", portable has ", expected[i]);
    }
  }
}

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  float Normal() { return normal_(engine_); }
  float Uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(engine_); }
  uint32_t Bits() { return static_cast<uint32_t>(engine_()); }
  std::vector<uint8_t> Bytes(size_t count);

 private:
  std::mt19937 engine_;
  std::normal_distribution<float> normal_;
};

// Numbers that rounding, comparison and scaling treat specially, of either sign, NaN last.
std::vector<float> SpecialFloats();

}  // namespace realm::test

#endif  // TESTS_CPU_KERNELS_NATIVE_CHECK_H_
