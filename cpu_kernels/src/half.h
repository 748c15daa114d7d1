// Conversion between float16 bits and float32 without instructions that a baseline CPU lacks.
#ifndef CPU_KERNELS_HALF_H_
#define CPU_KERNELS_HALF_H_

#include <cstdint>
#include <cstring>

namespace realm {

static inline float FloatOfBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint32_t BitsOfFloat(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Exact.
static inline float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fffu) << 13;
  if (magnitude >= 0x0f800000u) return FloatOfBits(sign | magnitude | 0x7f800000u);  // infinity, NaN
  if (magnitude >= 0x00800000u) return FloatOfBits(sign | (magnitude + 0x38000000u));
  // Subnormal: the bits are a multiple of 2^-24.
  const float value = static_cast<float>(magnitude >> 13) * FloatOfBits(0x33800000u);
  return FloatOfBits(BitsOfFloat(value) | sign);
}

// To nearest, ties to even.
static inline uint16_t FloatToHalf(float value) {
  const uint32_t bits = BitsOfFloat(value);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {
    // Adding 1/2 leaves the multiple of 2^-24 in the low bits, rounded as float addition rounds.
    const float shifted = FloatOfBits(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (BitsOfFloat(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

}  // namespace realm

#endif  // CPU_KERNELS_HALF_H_
