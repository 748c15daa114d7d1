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

// What a kernel multiplies: tiles of a kind by rows of a kind of roundings.
template <TileKind tile_kind, bool rounded_halves>
struct Operation {
  static constexpr TileKind kind = tile_kind;
  static constexpr bool halves = rounded_halves;
  static constexpr bool weight_halves = Geometry(kind).scales == 2;
  // Parts of a group that have scales of their own, be they the weights' or the activations'.
  static constexpr int parts = halves || weight_halves ? 2 : 1;

  static REALM_INLINE float Scale(const RowBlock& block, int64_t at, int part) {
    return halves ? block.halves[at].scales[part] : block.roundings[at].scale;
  }
  // The sum of the codes of x in a part of group `at`.
  static REALM_INLINE int32_t Sum(const RowBlock& block, int64_t at, int part) {
    if (halves) return block.halves[at].sums[part];
    const Rounding& rounding = block.roundings[at];
    if (parts == 1) return rounding.sum;
    return part == 0 ? rounding.half_sum : rounding.sum - rounding.half_sum;
  }
  static REALM_INLINE float ScaledSum(const RowBlock& block, int64_t at, int part) {
    if (parts == 1) return block.roundings[at].scaled_sum;
    return Scale(block, at, part) * static_cast<float>(Sum(block, at, part));
  }
};

// acc, and what a group adds to it, of whose products `sums` are the sums.
template <class V, class Op>
REALM_INLINE typename V::Floats AddScaled(const typename V::Ints (&sums)[Op::parts], const GroupScales<V>& weights,
                                          const RowBlock& block, int64_t at, typename V::Floats acc) {
  REALM_UNROLL
  for (int part = 0; part < Op::parts; ++part) {
    const typename V::Floats& scale = weights.scale[Op::weight_halves ? part : 0];
    acc = V::Fma(V::ToFloats(sums[part]), V::Mul(scale, V::SplatFloat(Op::Scale(block, at, part))), acc);
  }
  if constexpr (Geometry(Op::kind).has_min) {
    REALM_UNROLL
    for (int part = 0; part < Op::parts; ++part) {
      const typename V::Floats& min = weights.min[Op::weight_halves ? part : 0];
      acc = V::Fma(min, V::SplatFloat(Op::ScaledSum(block, at, part)), acc);
    }
  }
  return acc;
}

template <class V, class Op, int height>
REALM_INLINE void AddGroup(const uint8_t* unit, int slot, int64_t group, const RowBlock& block,
                           typename V::Floats (&acc)[height]) {
  constexpr int parts = Op::parts;
  typename V::Codes codes[kVectors];
  DecodeGroup<V, Op::kind>(unit, slot, codes);
  const GroupScales<V> weights = LoadGroupScales<V, Op::kind>(unit, slot);
  REALM_UNROLL
  for (int row = 0; row < height; ++row) {
    const int64_t at = group * height + row;
    typename V::Ints sums[parts];
    REALM_UNROLL
    for (int part = 0; part < parts; ++part) {
      sums[part] = SumProducts<V, Op::kind, height, kVectors / parts>(
          codes + kVectors / parts * part, block.codes + kGroup * at + kGroup / parts * part, Op::Sum(block, at, part));
    }
    acc[row] = AddScaled<V, Op>(sums, weights, block, at, acc[row]);
  }
}

template <class V, class Op, int height>
void Multiply(const uint8_t* tile, int64_t groups, const RowBlock& block, float* out) {
  constexpr TileGeometry geometry = Geometry(Op::kind);
  typename V::Floats acc[height];
  REALM_UNROLL
  for (int row = 0; row < height; ++row) acc[row] = V::SplatFloat(0.0f);
  // Of a long unit, a group at a time: unrolled, it would not fit the caches of decoded instructions.
  constexpr int step = geometry.groups > 2 ? 1 : geometry.groups;
  constexpr int step_bytes = geometry.unit_bytes() * step / geometry.groups;
  // The highest kernel may come back to a tile for the next block of rows.
  constexpr Locality locality = height < V::kMaxHeight ? kOnce : kKeep;
  const bool second = StreamsThroughSecondCache();
  for (int64_t group = 0; group < groups; group += geometry.groups, tile += geometry.unit_bytes()) {
    for (int first = 0; first < geometry.groups; first += step) {
      constexpr auto lines = std::make_index_sequence<(step_bytes + 63) / 64>();
      const uint8_t* ahead = tile + kPrefetchDistance + first * step_bytes;
      second ? PrefetchLines<kSecond>(ahead, lines) : PrefetchLines<locality>(ahead, lines);
      REALM_UNROLL
      for (int slot = first; slot < first + step; ++slot) {
        AddGroup<V, Op, height>(tile, slot, group + slot, block, acc);
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
      // Plain floats are a wider stream: on every CPU more lines must be on their way than the first cache can wait
      // for.
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

// The vectors of a group.
template <class V>
struct GroupFloats {
  static constexpr int kVectors = kGroup / kTileRows;
  typename V::Floats vectors[kVectors];
};

// The row's group of 32 values, normalised where it is to be; zeros behind the row's end.
template <class V>
REALM_INLINE GroupFloats<V> LoadGroup(const RowSource& source, float inverse_rms, int64_t group) {
  GroupFloats<V> x;
  REALM_UNROLL
  for (int i = 0; i < GroupFloats<V>::kVectors; ++i) {
    const int64_t first = kGroup * group + kTileRows * i;
    const int64_t left = source.columns - first;
    x.vectors[i] = left > 0 ? LoadUpTo<V>(source.x + first, left) : V::SplatFloat(0.0f);
    if (left > 0 && source.norm != nullptr) {
      const typename V::Floats scaled = V::Mul(x.vectors[i], V::SplatFloat(inverse_rms));
      x.vectors[i] = V::Mul(scaled, LoadUpTo<V>(source.norm + first, left));
    }
  }
  return x;
}

// The scale max |x| / 127, and what x is multiplied by before it is rounded to a code, 127 / max |x|. Both are zero
// where that is not finite; where a value is not, the scale is NaN, which makes its row's results NaN.
struct Step {
  float scale;
  float inverse;

  static REALM_INLINE Step Of(uint32_t largest) {
    if (largest >= kInfinity) return {FloatOfBits(0x7fc00000u), 0.0f};
    if (largest < kSmallestMagnitude) return {0.0f, 0.0f};
    return {FloatOfBits(largest) / 127.0f, 127.0f / FloatOfBits(largest)};
  }
};

// code = round(x * inverse), ties to even. Returns the sum of the codes.
template <class V>
REALM_INLINE int32_t RoundHalf(typename V::Floats x, Step step, int8_t* codes) {
  if (step.inverse != 0.0f) return V::RoundAndStore(x, step.inverse, codes);
  std::memset(codes, 0, kTileRows);
  return 0;
}

template <class V>
REALM_INLINE void QuantizeGroup(const GroupFloats<V>& x, int64_t at, const RowBlock& block) {
  int8_t* codes = block.codes + kGroup * at;
  if (block.halves != nullptr) {
    const Step low = Step::Of(V::LargestMagnitude(x.vectors[0], x.vectors[0]));
    const Step high = Step::Of(V::LargestMagnitude(x.vectors[1], x.vectors[1]));
    const int32_t first = RoundHalf<V>(x.vectors[0], low, codes);
    const int32_t second = RoundHalf<V>(x.vectors[1], high, codes + kTileRows);
    block.halves[at] = {{low.scale, high.scale}, {first, second}};
    return;
  }
  const Step step = Step::Of(V::LargestMagnitude(x.vectors[0], x.vectors[1]));
  const int32_t first = RoundHalf<V>(x.vectors[0], step, codes);
  const int32_t sum = first + RoundHalf<V>(x.vectors[1], step, codes + kTileRows);
  block.roundings[at] = {step.scale, step.scale * static_cast<float>(sum), sum, first};
}

template <class V>
void Quantize(const RowSource& source, int64_t groups, int row, const RowBlock& block) {
  const float inverse_rms = source.norm == nullptr ? 1.0f : InverseRms<V>(source.x, source.columns, source.eps);
  for (int64_t group = 0; group < groups; ++group) {
    const GroupFloats<V> x = LoadGroup<V>(source, inverse_rms, group);
    const int64_t at = group * block.height + row;
    for (int i = 0; block.values != nullptr && i < GroupFloats<V>::kVectors; ++i) {
      V::StoreFloats(block.values + kGroup * at + kTileRows * i, x.vectors[i]);
    }
    if (block.codes != nullptr) QuantizeGroup<V>(x, at, block);
  }
}

template <class V>
void StoreTile(const TileProducts& tile) {
  const float* products = tile.products;
  for (int64_t row = 0; row < tile.rows; ++row, products += kTileRows) {
    typename V::Floats x = V::LoadFloats(products);
    if (tile.bias != nullptr) x = V::Add(x, LoadUpTo<V>(tile.bias, tile.outputs));
    const int64_t at = row * tile.stride;
    if (tile.residual != nullptr) {
      x = V::Add(LoadUpTo<V>(tile.residual + at, tile.outputs), V::Mul(V::SplatFloat(tile.scale), x));
    }
    StoreUpTo<V>(tile.y + at, x, tile.outputs);
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

template <class V, class Op, int height>
constexpr MultiplyTile MultiplyOf() {
  if constexpr (IsPlain(Op::kind)) {
    return MultiplyPlain<V, Op::kind, height>;
  } else {
    return Multiply<V, Op, height>;
  }
}

template <class V, class Op>
constexpr void FillOperation(Kernels& kernels) {
  auto& row = kernels.multiply[Op::halves][static_cast<int>(Op::kind)];
  row[0] = MultiplyOf<V, Op, 1>();
  row[1] = MultiplyOf<V, Op, 2>();
  row[2] = MultiplyOf<V, Op, 4>();
  if constexpr (V::kMaxHeight > 4) {
    row[3] = MultiplyOf<V, Op, 8>();
    row[4] = MultiplyOf<V, Op, 16>();
  }
}

template <class V, TileKind kind>
constexpr void FillKind(Kernels& kernels) {
  FillOperation<V, Operation<kind, false>>(kernels);
  FillOperation<V, Operation<kind, true>>(kernels);
}

template <class V, size_t... kind>
constexpr void FillKinds(Kernels& kernels, std::index_sequence<kind...>) {
  (FillKind<V, static_cast<TileKind>(kind)>(kernels), ...);
}

template <class V>
constexpr Kernels MakeKernels() {
  Kernels kernels{V::kMaxHeight,
                  Quantize<V>,
                  StoreTile<V>,
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
