// The kernels, written once over the vector operations `V` of an instruction set.
//
// Every path computes the same numbers: integer sums of a group are exact, and a row's accumulator sees the same
// correctly rounded operations in the same order whatever the block's height or the instruction set.
//
//     acc = fma(float(sum), scale_w * scale_x, acc); acc = fma(min_w, scaled_sum_x, acc)      groups ascending
//
// Plain floats have two, which are added in the end: acc[c % 2] = fma(w[c], x[c], acc[c % 2])      columns ascending
//
// V is a type of an anonymous namespace, so that each instantiation stays inside the file compiled for its set.
#ifndef CPU_KERNELS_KERNEL_TEMPLATES_H_
#define CPU_KERNELS_KERNEL_TEMPLATES_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "attention_templates.h"
#include "group.h"
#include "half.h"
#include "kernels.h"
#include "largest.h"
#include "macros.h"
#include "prefetch.h"
#include "route.h"
#include "vector_math.h"

namespace realm {

// Bytes ahead of the reader: hardware prefetchers alone reach about two thirds of the memory's bandwidth. Of 2 to 16
// KB, 6 and 8 did best or as well as any.
constexpr int kPrefetchDistance = 6144;

// The smallest magnitude whose reciprocal times 127 is finite, rounded up to a power of two: below it a group is zero.
constexpr uint32_t kSmallestMagnitude = 0x03800000u;  // 2^-120
constexpr uint32_t kInfinity = 0x7f800000u;

// Sum of (code - offset) * x over `count` vectors, as 16 integers. With one or two rows the latency of a chain of sums
// shows, so it is cut in two; integers add up to the same.
template <class V, TileKind kind, int height, int count>
REALM_INLINE typename V::Ints SumProducts(const typename V::Codes* codes, const int8_t* x, int32_t sum) {
  constexpr bool bytes = Geometry(kind).offset == 128;
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

constexpr int kMatrixUnitRows = 16;

// Parts of a group that have scales of their own.
constexpr int Parts(TileKind kind) { return Geometry(kind).scales == 2 ? 2 : 1; }

// The sum of the codes of x in a part of group `at`.
REALM_INLINE int32_t SumOfPart(const RowBlock& block, int64_t at, int parts, int part) {
  const Rounding& rounding = block.roundings[at];
  if (parts == 1) return rounding.sum;
  return part == 0 ? rounding.half_sum : rounding.sum - rounding.half_sum;
}

// acc, and what a group adds to it, of whose products `sums` are the sums.
template <class V, TileKind kind>
REALM_INLINE typename V::Floats AddScaled(const typename V::Ints (&sums)[Parts(kind)], const GroupScales<V>& weights,
                                          const RowBlock& block, int64_t at, typename V::Floats acc) {
  constexpr int parts = Parts(kind);
  const float scale = block.roundings[at].scale;
  REALM_UNROLL
  for (int part = 0; part < parts; ++part) {
    acc = V::Fma(V::ToFloats(sums[part]), V::Mul(weights.scale[part], V::SplatFloat(scale)), acc);
  }
  if constexpr (Geometry(kind).has_min) {
    REALM_UNROLL
    for (int part = 0; part < parts; ++part) {
      const float sum =
          parts == 1 ? block.roundings[at].scaled_sum : scale * static_cast<float>(SumOfPart(block, at, parts, part));
      acc = V::Fma(weights.min[part], V::SplatFloat(sum), acc);
    }
  }
  return acc;
}

template <class V, TileKind kind, int height>
REALM_INLINE void AddGroup(const uint8_t* unit, int slot, int64_t group, const RowBlock& block,
                           typename V::Floats (&acc)[height]) {
  constexpr int parts = Parts(kind);
  typename V::Codes codes[kVectors];
  DecodeGroup<V, kind>(unit, slot, codes);
  const GroupScales<V> weights = LoadGroupScales<V, kind>(unit, slot);
  REALM_UNROLL
  for (int row = 0; row < height; ++row) {
    const int64_t at = group * height + row;
    typename V::Ints sums[parts];
    REALM_UNROLL
    for (int part = 0; part < parts; ++part) {
      sums[part] = SumProducts<V, kind, height, kVectors / parts>(codes + kVectors / parts * part,
                                                                  block.codes + kGroup * at + kGroup / parts * part,
                                                                  SumOfPart(block, at, parts, part));
    }
    acc[row] = AddScaled<V, kind>(sums, weights, block, at, acc[row]);
  }
}

// The same where a matrix unit adds up the products of 16 rows at a time, which are exact in whichever order.
template <class V, TileKind kind>
REALM_INLINE void AddGroupOnMatrixUnit(const uint8_t* unit, int slot, int64_t group, const RowBlock& block,
                                       typename V::Floats (&acc)[kMatrixUnitRows]) {
  constexpr int parts = Parts(kind);
  constexpr int columns = kGroup / parts;
  typename V::Codes decoded[kVectors];
  DecodeGroup<V, kind>(unit, slot, decoded);
  alignas(64) uint8_t codes[64 * kVectors];
  REALM_UNROLL
  for (int j = 0; j < kVectors; ++j) V::StoreCodes(codes + 64 * j, decoded[j]);
  alignas(64) int32_t products[parts][kMatrixUnitRows * kTileRows];
  REALM_UNROLL
  for (int part = 0; part < parts; ++part) {
    const int8_t* x = block.codes + kGroup * kMatrixUnitRows * group + columns * part;
    V::template MatrixUnitSums<columns>(x, codes + kTileRows * columns * part, products[part]);
  }
  const GroupScales<V> weights = LoadGroupScales<V, kind>(unit, slot);
  REALM_UNROLL
  for (int row = 0; row < kMatrixUnitRows; ++row) {
    const int64_t at = group * kMatrixUnitRows + row;
    typename V::Ints sums[parts];
    REALM_UNROLL
    for (int part = 0; part < parts; ++part) {
      const auto start =
          V::template Start<Geometry(kind).offset == 128>(Geometry(kind).offset, SumOfPart(block, at, parts, part));
      sums[part] = V::AddInts(start, V::LoadInts(products[part] + kTileRows * row));
    }
    acc[row] = AddScaled<V, kind>(sums, weights, block, at, acc[row]);
  }
}

template <class V, TileKind kind, int height>
void Multiply(const uint8_t* tile, int64_t groups, const RowBlock& block, float* out) {
  constexpr TileGeometry geometry = Geometry(kind);
  typename V::Floats acc[height];
  REALM_UNROLL
  for (int row = 0; row < height; ++row) acc[row] = V::SplatFloat(0.0f);
  // Of a long unit, a group at a time: unrolled, it would not fit the caches of decoded instructions.
  constexpr int step = geometry.groups > 2 ? 1 : geometry.groups;
  constexpr int step_bytes = geometry.unit_bytes() * step / geometry.groups;
  // The highest kernel may come back to a tile for the next block of rows.
  constexpr Locality locality = height < V::kMaxHeight ? kOnce : kKeep;
  const bool second = locality == kOnce && StreamsThroughSecondCache();
  for (int64_t group = 0; group < groups; group += geometry.groups, tile += geometry.unit_bytes()) {
    for (int first = 0; first < geometry.groups; first += step) {
      constexpr auto lines = std::make_index_sequence<(step_bytes + 63) / 64>();
      const uint8_t* ahead = tile + kPrefetchDistance + first * step_bytes;
      second ? PrefetchLines<kSecond>(ahead, lines) : PrefetchLines<locality>(ahead, lines);
      REALM_UNROLL
      for (int slot = first; slot < first + step; ++slot) {
        if constexpr (V::kMatrixUnit && height == kMatrixUnitRows) {
          AddGroupOnMatrixUnit<V, kind>(tile, slot, group + slot, block, acc);
        } else {
          AddGroup<V, kind, height>(tile, slot, group + slot, block, acc);
        }
      }
    }
  }
  REALM_UNROLL
  for (int row = 0; row < height; ++row) V::StoreFloats(out + kTileRows * row, acc[row]);
}

template <class V, TileKind kind>
REALM_INLINE typename V::Floats LoadColumn(const uint8_t* unit, int column) {
  constexpr int bytes = Geometry(kind).unit_bytes() / kGroup;
  if constexpr (kind == TileKind::kFloat32) return V::LoadFloats(reinterpret_cast<const float*>(unit + bytes * column));
  if constexpr (kind == TileKind::kFloat16) return V::LoadHalves(unit + bytes * column);
  if constexpr (kind == TileKind::kBfloat16) return V::LoadBfloats(unit + bytes * column);
}

// Rows [first, first + rows) of a block times a tile of plain floats.
template <class V, TileKind kind, int rows>
REALM_INLINE void MultiplyPlainRows(const uint8_t* tile, int64_t groups, const RowBlock& block, int first, float* out) {
  constexpr int unit_bytes = Geometry(kind).unit_bytes();
  constexpr int pair_bytes = 2 * unit_bytes / kGroup;  // of two columns, which are whole lines
  typename V::Floats even[rows];
  typename V::Floats odd[rows];
  REALM_UNROLL
  for (int row = 0; row < rows; ++row) even[row] = odd[row] = V::SplatFloat(0.0f);
  for (int64_t group = 0; group < groups; ++group, tile += unit_bytes) {
    const float* x = block.values + kGroup * (group * block.height + first);
    for (int column = 0; column < kGroup; column += 2) {
      // Plain floats are a wider stream: on every CPU more lines must be on their way than the first cache can wait for.
      PrefetchLines<kSecond>(tile + kPrefetchDistance + pair_bytes / 2 * column,
                             std::make_index_sequence<pair_bytes / 64>());
      const typename V::Floats left = LoadColumn<V, kind>(tile, column);
      const typename V::Floats right = LoadColumn<V, kind>(tile, column + 1);
      REALM_UNROLL
      for (int row = 0; row < rows; ++row) {
        even[row] = V::Fma(left, V::SplatFloat(x[kGroup * row + column]), even[row]);
        odd[row] = V::Fma(right, V::SplatFloat(x[kGroup * row + column + 1]), odd[row]);
      }
    }
  }
  REALM_UNROLL
  for (int row = 0; row < rows; ++row) V::StoreFloats(out + kTileRows * row, V::Add(even[row], odd[row]));
}

// As many rows at a time as registers hold twice over, besides the weights.
template <class V, TileKind kind, int height>
void MultiplyPlain(const uint8_t* tile, int64_t groups, const RowBlock& block, float* out) {
  constexpr int most = V::kFloatRegisters / 4;
  constexpr int rows = height < most ? height : most;
  for (int first = 0; first < height; first += rows) {
    MultiplyPlainRows<V, kind, rows>(tile, groups, block, first, out + kTileRows * first);
  }
}

// The row's group of 32 values, normalised where it is to be.
template <class V>
REALM_INLINE void LoadGroup(const RowSource& source, float inverse_rms, int64_t group, float* values) {
  REALM_UNROLL
  for (int i = 0; i < kGroup; i += kTileRows) {
    typename V::Floats x = V::LoadFloats(source.x + kGroup * group + i);
    if (source.norm != nullptr) {
      x = V::Mul(V::Mul(x, V::SplatFloat(inverse_rms)), V::LoadFloats(source.norm + kGroup * group + i));
    }
    V::StoreFloats(values + i, x);
  }
}

// The same of the first `count` values of a group, and zeros.
template <class V>
REALM_INLINE void LoadPartOfGroup(const RowSource& source, float inverse_rms, int64_t group, int64_t count,
                                  float* values) {
  for (int64_t i = 0; i < kGroup; i += kTileRows) {
    const auto some = static_cast<int>(std::clamp<int64_t>(count - i, 0, kTileRows));
    const int64_t at = some == 0 ? 0 : kGroup * group + i;
    typename V::Floats x = V::LoadSome(source.x + at, some);
    if (source.norm != nullptr) {
      x = V::Mul(V::Mul(x, V::SplatFloat(inverse_rms)), V::LoadSome(source.norm + at, some));
    }
    V::StoreFloats(values + i, x);
  }
}

// scale = max |x| / 127, code = round(x * (127 / max |x|)), ties to even; where the rest is wanted, x becomes x - scale
// * code. A group with a value that is not finite gets the scale NaN, which makes its row's results NaN.
template <class V, bool rest>
REALM_INLINE void QuantizeGroup(float* x, int64_t at, const RowBlock& block) {
  int8_t* codes = block.codes + kGroup * at;
  const uint32_t largest = V::LargestMagnitude(x);
  float scale = 0.0f;
  int32_t first = 0;
  int32_t sum = 0;
  if (largest >= kSmallestMagnitude && largest < kInfinity) {
    const float inverse = 127.0f / FloatOfBits(largest);
    scale = FloatOfBits(largest) / 127.0f;
    first = V::RoundAndStore(x, inverse, codes);
    sum = first + V::RoundAndStore(x + 16, inverse, codes + 16);
    REALM_UNROLL
    for (int i = 0; rest && i < kGroup; i += kTileRows) {
      const typename V::Floats values = V::LoadFloats(x + i);
      const typename V::Floats rounded = V::Round(V::Mul(values, V::SplatFloat(inverse)));
      V::StoreFloats(x + i, V::Fma(V::SplatFloat(-scale), rounded, values));
    }
  } else {
    std::memset(codes, 0, kGroup);
    if (largest >= kInfinity) scale = FloatOfBits(0x7fc00000u);
  }
  block.roundings[at] = {scale, scale * static_cast<float>(sum), sum, first};
}

template <class V, bool twice>
REALM_INLINE void QuantizeGroups(const RowSource& source, int64_t groups, int row, const RowBlock& block) {
  const float inverse_rms = source.norm == nullptr ? 1.0f : InverseRms<V>(source.x, source.columns, source.eps);
  // Outside the loop: declared inside it, GCC 12 at -O1 gives its memory to temporaries of LoadGroup as well.
  alignas(64) float values[kGroup];
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t left = source.columns - kGroup * group;
    if (left >= kGroup) {
      LoadGroup<V>(source, inverse_rms, group, values);
    } else if (left > 0) {
      LoadPartOfGroup<V>(source, inverse_rms, group, left, values);
    } else {
      std::fill(values, values + kGroup, 0.0f);
    }
    if (block.values != nullptr) {
      float* own = block.values + kGroup * (group * block.height + row);
      std::copy(values, values + kGroup, own);
      if (twice) std::fill(own + kGroup, own + 2 * kGroup, 0.0f);
    }
    if (block.codes == nullptr) continue;
    QuantizeGroup<V, twice>(values, group * block.height + row, block);
    if (twice) QuantizeGroup<V, false>(values, group * block.height + row + 1, block);
  }
}

template <class V>
void Quantize(const RowSource& source, int64_t groups, bool twice, int row, const RowBlock& block) {
  if (twice) {
    QuantizeGroups<V, true>(source, groups, row, block);
  } else {
    QuantizeGroups<V, false>(source, groups, row, block);
  }
}

template <class V, typename V::Floats (*activation)(typename V::Floats)>
void ApplyGate(const float* gate, const float* up, const GateOptions&, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += kTileRows) {
    V::StoreFloats(out + i, V::Mul(activation(V::LoadFloats(gate + i)), V::LoadFloats(up + i)));
  }
}

template <class V>
void ApplyClampedGate(const float* gate, const float* up, const GateOptions& options, int64_t count, float* out) {
  const typename V::Floats most = V::SplatFloat(options.limit);
  for (int64_t i = 0; i < count; i += kTileRows) {
    // In this order of operands, NaN stays NaN.
    const typename V::Floats g = V::Min(most, V::LoadFloats(gate + i));
    const typename V::Floats u = V::Max(V::SplatFloat(-options.limit), V::Min(most, V::LoadFloats(up + i)));
    const typename V::Floats activated = V::Mul(g, Sigmoid<V>(V::Mul(V::SplatFloat(options.alpha), g)));
    V::StoreFloats(out + i, V::Mul(activated, V::Add(u, V::SplatFloat(1.0f))));
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

template <class V, TileKind kind, int height>
constexpr MultiplyTile MultiplyOf() {
  if constexpr (IsPlain(kind)) {
    return MultiplyPlain<V, kind, height>;
  } else {
    return Multiply<V, kind, height>;
  }
}

template <class V, TileKind kind>
constexpr void FillKind(Kernels& kernels) {
  auto& row = kernels.multiply[static_cast<int>(kind)];
  row[0] = MultiplyOf<V, kind, 1>();
  row[1] = MultiplyOf<V, kind, 2>();
  row[2] = MultiplyOf<V, kind, 4>();
  if constexpr (V::kMaxHeight > 4) {
    row[3] = MultiplyOf<V, kind, 8>();
    row[4] = MultiplyOf<V, kind, 16>();
  }
}

template <class V, size_t... kind>
constexpr void FillKinds(Kernels& kernels, std::index_sequence<kind...>) {
  (FillKind<V, static_cast<TileKind>(kind)>(kernels), ...);
}

template <class V>
constexpr Kernels MakeKernels() {
  Kernels kernels{V::kMaxHeight,
                  Quantize<V>,
                  {nullptr, ApplyGate<V, Silu<V>>, ApplyGate<V, GeluTanh<V>>, ApplyClampedGate<V>},
                  AddNormalized<V>,
                  FindLargest<V>,
                  Route<V>,
                  {},
                  MakeAttentionKernels<V>()};
  FillKinds<V>(kernels, std::make_index_sequence<kTileKinds>());
  return kernels;
}

}  // namespace realm

#endif  // CPU_KERNELS_KERNEL_TEMPLATES_H_
