// How a group of a tile is read: its codes as bytes, its scales and minima as floats.
#ifndef CPU_KERNELS_GROUP_H_
#define CPU_KERNELS_GROUP_H_

#include <cstdint>
#include <utility>

#include "macros.h"
#include "tiles.h"

namespace realm {

// codes[j] |= field of `width` bits that belongs to vector j, moved to bit `at`.
template <class V, int width, int at, size_t... j>
REALM_INLINE void AddPlanes(const uint8_t* planes, typename V::Codes (&codes)[kVectors], std::index_sequence<j...>) {
  constexpr int each = 8 / width;  // vectors a plane
  constexpr int mask = ((1 << width) - 1) << at;
  ((codes[j] = V::template AddBits<mask, at - width* static_cast<int>(j % each)>(
        codes[j], V::LoadCodes(planes + 64 * (j / each)))),
   ...);
}

template <TileKind kind>
struct CodesOfTable {
  uint8_t codes[16] = {};
  constexpr CodesOfTable() {
    for (int i = 0; i < 16; ++i) codes[i] = static_cast<uint8_t>(TableOf(kind).values[i] + Geometry(kind).offset);
  }
};

// The codes of a group, so that the weights are scale * (code - offset) + minimum. One-bit codes come as 0 and 2.
template <class V, TileKind kind>
REALM_INLINE void DecodeGroup(const uint8_t* unit, int slot, typename V::Codes (&codes)[kVectors]) {
  constexpr TileGeometry geometry = Geometry(kind);
  constexpr auto vectors = std::make_index_sequence<kVectors>();
  const uint8_t* stored = unit + slot * geometry.code_bytes();
  if constexpr (geometry.low_bits == 8) {
    REALM_UNROLL
    for (int j = 0; j < kVectors; ++j) codes[j] = V::LoadCodes(stored + 64 * j);
  } else if constexpr (geometry.low_bits == 4) {
    REALM_UNROLL
    for (int i = 0; i < kVectors / 2; ++i) {
      const typename V::Codes pair = V::LoadCodes(stored + 64 * i);
      codes[2 * i] = V::LowNibbles(pair);
      codes[2 * i + 1] = V::HighNibbles(pair);
    }
  } else {
    REALM_UNROLL
    for (typename V::Codes& code : codes) code = typename V::Codes{};
    AddPlanes<V, geometry.low_bits, geometry.low_bits == 1 ? 1 : 0>(stored, codes, vectors);
  }
  if constexpr (geometry.high_bits > 0) {
    const uint8_t* planes = unit + geometry.planes_at() + slot * geometry.plane_bytes();
    AddPlanes<V, geometry.high_bits, geometry.low_bits>(planes, codes, vectors);
  }
  if constexpr (HasTable(kind)) {
    static constexpr CodesOfTable<kind> kTable;
    const typename V::Codes table = V::LoadTable(kTable.codes);
    REALM_UNROLL
    for (typename V::Codes& code : codes) code = V::Lookup(table, code);
  }
}

// Scales of a group's halves, or of the whole group in the first; minima alike.
template <class V>
struct GroupScales {
  typename V::Floats scale[2];
  typename V::Floats min[2];
};

template <class V, ScaleCode code>
REALM_INLINE typename V::Floats LoadScales(const uint8_t* set) {
  if constexpr (code == ScaleCode::kHalf) return V::LoadHalves(set);
  if constexpr (code == ScaleCode::kInteger) return V::LoadSignedBytes(set);
  if constexpr (code == ScaleCode::kPowerOfTwo) {
    return V::ScaleByPowerOfTwo(V::SplatFloat(1.0f), V::LoadSignedBytes(set));
  }
  // The bits of an e4m3 float, moved to the exponent and mantissa of a half, are 2^-8 of it, subnormal or not.
  if constexpr (code == ScaleCode::kE4M3) return V::Mul(V::LoadShiftedHalves(set), V::SplatFloat(128.0f));
}

// scale + 16 * (min - 8) apart, exactly: a sixteenth of it lies within 15/32 of min - 8 + 15/32.
template <class V>
REALM_INLINE void SplitPairs(const uint8_t* set, typename V::Floats* scale, typename V::Floats* min) {
  const typename V::Floats both = V::LoadSignedBytes(set);
  const typename V::Floats high = V::Round(V::Fma(both, V::SplatFloat(0.0625f), V::SplatFloat(-0.46875f)));
  *scale = V::Fma(high, V::SplatFloat(-16.0f), both);
  *min = V::Add(high, V::SplatFloat(8.0f));
}

// Products of a unit's scale and a group's are exact: they have at most 11 + 8 bits.
template <class V, TileKind kind>
REALM_INLINE GroupScales<V> LoadGroupScales(const uint8_t* unit, int slot) {
  constexpr TileGeometry geometry = Geometry(kind);
  GroupScales<V> group;
  const uint8_t* sets = unit + geometry.scales_at() + slot * geometry.scale_bytes();
  if constexpr (geometry.scales > 0) {
    REALM_UNROLL
    for (int i = 0; i < geometry.scales; ++i, sets += geometry.set_bytes()) {
      if constexpr (geometry.scale_code == ScaleCode::kPair) {
        SplitPairs<V>(sets, &group.scale[i], &group.min[i]);
      } else {
        group.scale[i] = LoadScales<V, geometry.scale_code>(sets);
        if constexpr (geometry.has_min) {
          group.min[i] = LoadScales<V, geometry.scale_code>(sets + geometry.scales * geometry.set_bytes());
        }
      }
    }
  }
  const uint8_t* own = unit + geometry.unit_scale_at();
  if constexpr (geometry.unit_scale != UnitScale::kNone) {
    typename V::Floats scale;
    if constexpr (geometry.unit_scale == UnitScale::kSingle) {
      scale = V::LoadFloats(reinterpret_cast<const float*>(own));
    } else {
      scale = V::LoadHalves(own);
    }
    if constexpr (geometry.scales == 0) group.scale[0] = scale;
    REALM_UNROLL
    for (int i = 0; i < geometry.scales; ++i) group.scale[i] = V::Mul(group.scale[i], scale);
  }
  if constexpr (geometry.unit_scale == UnitScale::kWithMin) {
    const typename V::Floats min = V::LoadHalves(own + 32);
    REALM_UNROLL
    for (int i = 0; i < geometry.scales; ++i) group.min[i] = V::Mul(group.min[i], min);
  }
  return group;
}

}  // namespace realm

#endif  // CPU_KERNELS_GROUP_H_
