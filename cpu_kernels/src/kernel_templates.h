// The kernels, written once over the vector operations `V` of an instruction set.
//
// Every path computes the same numbers: integer sums of a group are exact, and a row's accumulator sees the same
// correctly rounded operations in the same order whatever the block's height or the instruction set.
//
//     acc = fma(float(sum), scale_w * scale_x, acc); acc = fma(min_w, scaled_sum_x, acc)      groups ascending
//
// V is a type of an anonymous namespace, so that each instantiation stays inside the file compiled for its set.
#ifndef CPU_KERNELS_KERNEL_TEMPLATES_H_
#define CPU_KERNELS_KERNEL_TEMPLATES_H_

#include <cstdint>
#include <cstring>
#include <utility>

#include "attention_templates.h"
#include "half.h"
#include "kernels.h"
#include "macros.h"
#include "vector_math.h"

namespace realm {

// Bytes ahead of the reader: hardware prefetchers alone reach about two thirds of the memory's bandwidth. Five-bit
// units need more instructions a byte and a longer lead.
template <TileKind kind>
constexpr int kPrefetchDistance = kind == TileKind::kFive || kind == TileKind::kFiveMin ? 8192 : 4096;

// The smallest magnitude whose reciprocal times 127 is finite, rounded up to a power of two: below it a group is zero.
constexpr uint32_t kSmallestMagnitude = 0x03800000u;  // 2^-120
constexpr uint32_t kInfinity = 0x7f800000u;

template <class V, TileKind kind>
REALM_INLINE void DecodeGroup(const uint8_t* unit, int slot, typename V::Codes (&codes)[kVectors]) {
  constexpr TileGeometry geometry = Geometry(kind);
  const uint8_t* stored = unit + slot * geometry.code_bytes;
  if constexpr (kind == TileKind::kByte) {
    REALM_UNROLL
    for (int j = 0; j < kVectors; ++j) codes[j] = V::LoadCodes(stored + 64 * j);
  } else {
    REALM_UNROLL
    for (int i = 0; i < kVectors / 2; ++i) {
      const typename V::Codes pair = V::LoadCodes(stored + 64 * i);
      codes[2 * i] = V::LowNibbles(pair);
      codes[2 * i + 1] = V::HighNibbles(pair);
    }
  }
  const uint8_t* planes = unit + geometry.planes_at() + slot * geometry.plane_bytes;
  if constexpr (geometry.plane_bytes == 64) {
    const typename V::Codes plane = V::LoadCodes(planes);
    codes[0] = V::template AddBits<0x10, 4>(codes[0], plane);
    codes[1] = V::template AddBits<0x10, 3>(codes[1], plane);
    codes[2] = V::template AddBits<0x10, 2>(codes[2], plane);
    codes[3] = V::template AddBits<0x10, 1>(codes[3], plane);
    codes[4] = V::template AddBits<0x10, 0>(codes[4], plane);
    codes[5] = V::template AddBits<0x10, -1>(codes[5], plane);
    codes[6] = V::template AddBits<0x10, -2>(codes[6], plane);
    codes[7] = V::template AddBits<0x10, -3>(codes[7], plane);
  }
  if constexpr (geometry.plane_bytes == 128) {
    REALM_UNROLL
    for (int p = 0; p < 2; ++p) {
      const typename V::Codes plane = V::LoadCodes(planes + 64 * p);
      codes[4 * p] = V::template AddBits<0x30, 4>(codes[4 * p], plane);
      codes[4 * p + 1] = V::template AddBits<0x30, 2>(codes[4 * p + 1], plane);
      codes[4 * p + 2] = V::template AddBits<0x30, 0>(codes[4 * p + 2], plane);
      codes[4 * p + 3] = V::template AddBits<0x30, -2>(codes[4 * p + 3], plane);
    }
  }
}

// Sum of (code - offset) * x over `count` vectors, as 16 integers. With one or two rows the latency of a chain of sums
// shows, so it is cut in two; integers add up to the same.
template <class V, TileKind kind, int height, int count>
REALM_INLINE typename V::Ints SumProducts(const typename V::Codes* codes, const int8_t* x, int32_t sum) {
  constexpr bool bytes = kind == TileKind::kByte;
  typename V::Ints even = V::template Start<bytes>(Geometry(kind).offset, sum);
  if constexpr (height <= 2) {
    typename V::Ints odd = V::SplatInt(0);
    REALM_UNROLL
    for (int j = 0; j < count; j += 2) {
      even = V::template Dot<bytes>(even, codes[j], x + 4 * j);
      odd = V::template Dot<bytes>(odd, codes[j + 1], x + 4 * j + 4);
    }
    return V::AddInts(even, odd);
  } else {
    REALM_UNROLL
    for (int j = 0; j < count; ++j) even = V::template Dot<bytes>(even, codes[j], x + 4 * j);
    return even;
  }
}

template <class V, TileKind kind, int height>
REALM_INLINE void AddGroup(const uint8_t* unit, int slot, int64_t group, const RowBlock& block,
                           typename V::Floats (&acc)[height]) {
  constexpr TileGeometry geometry = Geometry(kind);
  typename V::Codes codes[kVectors];
  DecodeGroup<V, kind>(unit, slot, codes);
  const uint8_t* scales = unit + geometry.scales_at() + slot * geometry.scale_bytes();
  const typename V::Floats scale = V::LoadHalves(scales);
  const typename V::Floats second = V::LoadHalves(scales + 32 * (geometry.scale_bytes() / 32 - 1));
  REALM_UNROLL
  for (int row = 0; row < height; ++row) {
    const int64_t at = group * height + row;
    const int8_t* x = block.codes + kGroup * at;
    const typename V::Floats scale_x = V::SplatFloat(block.scales[at]);
    if constexpr (kind == TileKind::kSix) {
      const int32_t half = block.half_sums[at];
      const auto low = SumProducts<V, kind, height, kVectors / 2>(codes, x, half);
      const auto high = SumProducts<V, kind, height, kVectors / 2>(codes + 4, x + 16, block.sums[at] - half);
      acc[row] = V::Fma(V::ToFloats(low), V::Mul(scale, scale_x), acc[row]);
      acc[row] = V::Fma(V::ToFloats(high), V::Mul(second, scale_x), acc[row]);
    } else {
      const auto sum = SumProducts<V, kind, height, kVectors>(codes, x, block.sums[at]);
      acc[row] = V::Fma(V::ToFloats(sum), V::Mul(scale, scale_x), acc[row]);
      if constexpr (geometry.has_min) acc[row] = V::Fma(second, V::SplatFloat(block.scaled_sums[at]), acc[row]);
    }
  }
}

template <size_t... line>
REALM_INLINE void PrefetchLines(const uint8_t* first, std::index_sequence<line...>) {
  (__builtin_prefetch(first + 64 * line), ...);
}

template <class V, TileKind kind, int height>
void Multiply(const uint8_t* tile, int64_t groups, const RowBlock& block, float* out) {
  constexpr TileGeometry geometry = Geometry(kind);
  typename V::Floats acc[height];
  REALM_UNROLL
  for (int row = 0; row < height; ++row) acc[row] = V::SplatFloat(0.0f);
  for (int64_t group = 0; group < groups; group += geometry.groups, tile += geometry.unit_bytes()) {
    PrefetchLines(tile + kPrefetchDistance<kind>, std::make_index_sequence<geometry.unit_bytes() / 64>());
    REALM_UNROLL
    for (int slot = 0; slot < geometry.groups; ++slot) {
      AddGroup<V, kind, height>(tile, slot, group + slot, block, acc);
    }
  }
  REALM_UNROLL
  for (int row = 0; row < height; ++row) V::StoreFloats(out + kTileRows * row, acc[row]);
}

// The row's group of 32 values, normalised where it is to be; `buffer` holds them then.
template <class V>
REALM_INLINE const float* ValuesOfGroup(const RowSource& source, float inverse_rms, int64_t group, float* buffer) {
  const float* x = source.x + kGroup * group;
  if (source.norm == nullptr) return x;
  REALM_UNROLL
  for (int i = 0; i < kGroup; i += kTileRows) {
    const typename V::Floats scaled = V::Mul(V::LoadFloats(x + i), V::SplatFloat(inverse_rms));
    V::StoreFloats(buffer + i, V::Mul(scaled, V::LoadFloats(source.norm + kGroup * group + i)));
  }
  return buffer;
}

// scale = max |x| / 127, code = round(x * (127 / max |x|)), ties to even. A group with a value that is not finite gets
// the scale NaN, which makes its row's results NaN.
template <class V>
void Quantize(const RowSource& source, int64_t groups, int row, const RowBlock& block) {
  const float inverse_rms = source.norm == nullptr ? 1.0f : InverseRms<V>(source.x, source.columns, source.eps);
  // Outside the loop: declared inside it, GCC 12 at -O1 gives its memory to temporaries of ValuesOfGroup as well.
  alignas(64) float buffer[kGroup];
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t at = group * block.height + row;
    int8_t* codes = block.codes + kGroup * at;
    const bool inside = group < source.columns / kGroup;
    const float* x = inside ? ValuesOfGroup<V>(source, inverse_rms, group, buffer) : nullptr;
    const uint32_t largest = inside ? V::LargestMagnitude(x) : 0;
    float scale = 0.0f;
    int32_t first = 0;
    int32_t sum = 0;
    if (largest >= kSmallestMagnitude && largest < kInfinity) {
      const float inverse = 127.0f / FloatOfBits(largest);
      scale = FloatOfBits(largest) / 127.0f;
      first = V::RoundAndStore(x, inverse, codes);
      sum = first + V::RoundAndStore(x + 16, inverse, codes + 16);
    } else {
      std::memset(codes, 0, kGroup);
      if (largest >= kInfinity) scale = FloatOfBits(0x7fc00000u);
    }
    block.scales[at] = scale;
    block.scaled_sums[at] = scale * static_cast<float>(sum);
    block.sums[at] = sum;
    block.half_sums[at] = first;
  }
}

template <class V, typename V::Floats (*activation)(typename V::Floats)>
void ApplyGate(const float* gate, const float* up, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += kTileRows) {
    V::StoreFloats(out + i, V::Mul(activation(V::LoadFloats(gate + i)), V::LoadFloats(up + i)));
  }
}

template <class V>
void AddNormalized(const RowSource& branch, const float* residual, float scale, float* out) {
  const float inverse_rms = InverseRms<V>(branch.x, branch.columns, branch.eps);
  for (int64_t i = 0; i < branch.columns; i += kTileRows) {
    const int count = static_cast<int>(branch.columns - i < kTileRows ? branch.columns - i : kTileRows);
    const typename V::Floats scaled = V::Mul(V::LoadSome(branch.x + i, count), V::SplatFloat(inverse_rms));
    const typename V::Floats normal = V::Mul(scaled, V::LoadSome(branch.norm + i, count));
    const typename V::Floats sum = V::Add(V::LoadSome(residual + i, count), V::Mul(normal, V::SplatFloat(scale)));
    V::StoreSome(out + i, sum, count);
  }
}

template <class V, TileKind kind>
constexpr void FillKind(Kernels& kernels) {
  auto& row = kernels.multiply[static_cast<int>(kind)];
  row[0] = Multiply<V, kind, 1>;
  row[1] = Multiply<V, kind, 2>;
  row[2] = Multiply<V, kind, 4>;
  if constexpr (V::kMaxHeight > 4) {
    row[3] = Multiply<V, kind, 8>;
    row[4] = Multiply<V, kind, 16>;
  }
}

template <class V>
constexpr Kernels MakeKernels() {
  Kernels kernels{V::kMaxHeight,    Quantize<V>, {nullptr, ApplyGate<V, Silu<V>>, ApplyGate<V, GeluTanh<V>>},
                  AddNormalized<V>, {},          MakeAttentionKernels<V>()};
  FillKind<V, TileKind::kNibble>(kernels);
  FillKind<V, TileKind::kNibbleMin>(kernels);
  FillKind<V, TileKind::kFive>(kernels);
  FillKind<V, TileKind::kFiveMin>(kernels);
  FillKind<V, TileKind::kSix>(kernels);
  FillKind<V, TileKind::kByte>(kernels);
  return kernels;
}

}  // namespace realm

#endif  // CPU_KERNELS_KERNEL_TEMPLATES_H_
