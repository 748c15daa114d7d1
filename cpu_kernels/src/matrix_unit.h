// Products of 16 rows where a matrix unit adds up the integers.
#ifndef CPU_KERNELS_MATRIX_UNIT_H_
#define CPU_KERNELS_MATRIX_UNIT_H_

#include <cstdint>
#include <utility>

#include "group.h"
#include "kernel_templates.h"
#include "macros.h"
#include "prefetch.h"

namespace realm {

constexpr int kMatrixUnitRows = 16;

// A group passes three stages: its codes are decoded and stored; the unit multiplies them and stores its sums; these
// are scaled and added. A round works on three groups, this many apart: none waits for what another has just stored.
constexpr int kStageDistance = 2;

template <class V, class Op>
class MatrixUnitProduct {
 public:
  REALM_INLINE MatrixUnitProduct(const uint8_t* tile, const RowBlock& block) : tile_(tile), block_(block) {}

  // The codes less their offset, which are bytes with a sign.
  REALM_INLINE void Decode(int64_t group) {
    // CPUs with a matrix unit are among those that stream through the second cache.
    constexpr int bytes = Geometry(Op::kind).unit_bytes() / kUnitGroups;
    PrefetchLines<kSecond>(Unit(group) + kPrefetchDistance + bytes * Slot(group),
                           std::make_index_sequence<(bytes + 63) / 64>());
    typename V::Codes decoded[kVectors];
    DecodeGroup<V, Op::kind>(Unit(group), Slot(group), decoded);
    uint8_t* codes = codes_[group % kBuffers];
    REALM_UNROLL
    for (int j = 0; j < kVectors; ++j) {
      V::StoreCodes(codes + 64 * j, V::template SubtractFromCodes<Geometry(Op::kind).offset>(decoded[j]));
    }
  }

  REALM_INLINE void Multiply(int64_t group) {
    constexpr int columns = kGroup / Op::parts;
    const int8_t* x = block_.codes + kGroup * kMatrixUnitRows * group;
    REALM_UNROLL
    for (int part = 0; part < Op::parts; ++part) {
      const uint8_t* codes = codes_[group % kBuffers] + kTileRows * columns * part;
      V::template MatrixUnitSums<columns>(x + columns * part, codes, sums_[group % kBuffers][part]);
    }
  }

  REALM_INLINE void Add(int64_t group, typename V::Floats (&acc)[kMatrixUnitRows]) const {
    const GroupScales<V> weights = LoadGroupScales<V, Op::kind>(Unit(group), Slot(group));
    REALM_UNROLL
    for (int row = 0; row < kMatrixUnitRows; ++row) {
      typename V::Ints sums[Op::parts];
      REALM_UNROLL
      for (int part = 0; part < Op::parts; ++part) {
        sums[part] = V::LoadInts(sums_[group % kBuffers][part] + kTileRows * row);
      }
      acc[row] = AddScaled<V, Op>(sums, weights, block_, kMatrixUnitRows * group + row, acc[row]);
    }
  }

 private:
  static constexpr int kBuffers = 2 * kStageDistance;
  static constexpr int kUnitGroups = Geometry(Op::kind).groups;

  REALM_INLINE const uint8_t* Unit(int64_t group) const {
    return tile_ + group / kUnitGroups * Geometry(Op::kind).unit_bytes();
  }
  static REALM_INLINE int Slot(int64_t group) { return static_cast<int>(group % kUnitGroups); }

  const uint8_t* tile_;
  const RowBlock& block_;
  alignas(64) uint8_t codes_[kBuffers][64 * kVectors];
  alignas(64) int32_t sums_[kBuffers][Op::parts][kMatrixUnitRows * kTileRows];
};

// Multiply<V, Op, 16> with the same results.
template <class V, class Op>
void MultiplyOnMatrixUnit(const uint8_t* tile, int64_t groups, const RowBlock& block, float* out) {
  typename V::Floats acc[kMatrixUnitRows];
  REALM_UNROLL
  for (typename V::Floats& row : acc) row = V::SplatFloat(0.0f);
  MatrixUnitProduct<V, Op> product(tile, block);
  for (int64_t decoded = 0; decoded < groups + 2 * kStageDistance; ++decoded) {
    if (decoded < groups) product.Decode(decoded);
    const int64_t multiplied = decoded - kStageDistance;
    if (multiplied >= 0 && multiplied < groups) product.Multiply(multiplied);
    const int64_t added = multiplied - kStageDistance;
    if (added >= 0) product.Add(added, acc);
  }
  REALM_UNROLL
  for (int row = 0; row < kMatrixUnitRows; ++row) V::StoreFloats(out + kTileRows * row, acc[row]);
}

}  // namespace realm

#endif  // CPU_KERNELS_MATRIX_UNIT_H_
