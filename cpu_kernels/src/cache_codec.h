// Reading and writing keys and values in the formats of the cache, written once over the vector operations `V`.
//
// What is read is exact in float32, so that scores and sums see the same numbers on every instruction set.
#ifndef CPU_KERNELS_CACHE_CODEC_H_
#define CPU_KERNELS_CACHE_CODEC_H_

#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.h"
#include "kv_cache.h"
#include "macros.h"

namespace realm {

// 16 neighbouring elements; those of q8_0 still lack their scale.
template <class V, CacheKind kind>
REALM_INLINE typename V::Floats LoadElements(const uint8_t* elements) {
  if constexpr (kind == CacheKind::kFloat32) return V::LoadFloats(reinterpret_cast<const float*>(elements));
  if constexpr (kind == CacheKind::kFloat16) return V::LoadHalves(elements);
  if constexpr (kind == CacheKind::kBfloat16) return V::LoadBfloats(elements);
  if constexpr (kind == CacheKind::kQ8_0) return V::LoadSignedBytes(elements);
}

// To nearest, ties to even.
template <class V>
REALM_INLINE void StoreBfloats(uint8_t* elements, const float* x) {
  uint16_t rounded[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    const uint32_t bits = BitsOfFloat(x[i]);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    rounded[i] = static_cast<uint16_t>((is_nan ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
  }
  std::memcpy(elements, rounded, sizeof rounded);
}

// Codes of 16 channels for a scale; a scale that is zero or not finite has codes of zero, and NaN reads as NaN.
template <class V>
REALM_INLINE void StoreCodes(uint8_t* elements, const float* x, float scale) {
  int8_t codes[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    // A scale below float16's normal range may be rounded down by more than a code can make up for.
    const float code = std::nearbyint(x[i] / scale);
    const float clipped = code > 127.0f ? 127.0f : code < -127.0f ? -127.0f : code;
    codes[i] = scale > 0.0f ? static_cast<int8_t>(clipped == clipped ? clipped : 0.0f) : int8_t{0};
  }
  std::memcpy(elements, codes, sizeof codes);
}

// The float16 scale of `count` channels, at most 32: max / 127, and NaN where one of them is not finite.
template <class V>
REALM_INLINE uint16_t ScaleOf(const float* x, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t magnitude = BitsOfFloat(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest >= 0x7f800000u ? uint16_t{0x7e00} : FloatToHalf(FloatOfBits(largest) / 127.0f);
}

// Encodes `channels` floats, a multiple of 16, as one position and hands each piece to `store`:
// elements(channel, 16 elements) and scale(index, 2 bytes).
template <class V, CacheKind kind, class Elements, class Scale>
REALM_INLINE void Encode(const float* x, int64_t channels, const Elements& elements, const Scale& scale) {
  uint8_t encoded[4 * kLanes];
  float wide = 0.0f;
  for (int64_t channel = 0; channel < channels; channel += kLanes) {
    const float* from = x + channel;
    if constexpr (kind == CacheKind::kFloat32) std::memcpy(encoded, from, sizeof encoded);
    if constexpr (kind == CacheKind::kFloat16) V::StoreHalves(encoded, V::LoadFloats(from));
    if constexpr (kind == CacheKind::kBfloat16) StoreBfloats<V>(encoded, from);
    if constexpr (kind == CacheKind::kQ8_0) {
      if (channel % kScaleChannels == 0) {
        const int64_t left = channels - channel;
        const uint16_t half = ScaleOf<V>(from, left < kScaleChannels ? left : kScaleChannels);
        wide = HalfToFloat(half);
        scale(channel / kScaleChannels, &half);
      }
      StoreCodes<V>(encoded, from, wide);
    }
    elements(channel, encoded);
  }
}

// `keys` is the plane of a kv head, `offset` the position inside its block.
template <class V, CacheKind kind>
REALM_INLINE void AppendKey(const float* x, const CacheGeometry& geometry, int64_t offset, uint8_t* keys) {
  constexpr int64_t size = ElementBytes(kind);
  uint8_t* group = keys + offset / kLanes * kLanes * geometry.row_bytes;
  const int64_t lane = offset % kLanes;
  const auto elements = [=](int64_t channel, const uint8_t* encoded) {
    for (int64_t i = 0; i < kLanes; ++i) {
      std::memcpy(group + ((channel + i) * kLanes + lane) * size, encoded + i * size, size);
    }
  };
  uint8_t* scales = group + geometry.channels * kLanes * size;
  const auto scale = [=](int64_t index, const uint16_t* half) {
    std::memcpy(scales + 2 * (index * kLanes + lane), half, sizeof *half);
  };
  Encode<V, kind>(x, geometry.channels, elements, scale);
}

template <class V, CacheKind kind>
REALM_INLINE void AppendValue(const float* x, const CacheGeometry& geometry, int64_t offset, uint8_t* values) {
  constexpr int64_t size = ElementBytes(kind);
  uint8_t* row = values + offset * geometry.row_bytes;
  const auto elements = [=](int64_t channel, const uint8_t* encoded) {
    std::memcpy(row + channel * size, encoded, kLanes * size);
  };
  uint8_t* scales = row + geometry.channels * size;
  const auto scale = [=](int64_t index, const uint16_t* half) { std::memcpy(scales + 2 * index, half, sizeof *half); };
  Encode<V, kind>(x, geometry.channels, elements, scale);
}

}  // namespace realm

#endif  // CPU_KERNELS_CACHE_CODEC_H_
