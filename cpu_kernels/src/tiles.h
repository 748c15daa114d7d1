// The tile layout of packed weights: which bytes hold which codes, scales and minima.
//
// A tile is 16 rows of a matrix, all their columns, in one contiguous stream. It is a sequence of units of one to eight
// groups; a group is 32 columns. A unit of U groups, each with C bytes of codes, P of high bits and S of scales:
//
//     | codes of group 0 | ... | high bits of group 0 | ... | scales of group 0 | ... | scales of the unit |
//     0                  C    UC                    UC+P  U(C+P)            U(C+P)+S  U(C+P+S)
//
// Byte lane 4 r + k of a 64-byte vector belongs to row r; vector j of a group holds columns 4 j + k.
//
//     8 bits (C = 512):  vector j of the group, value + 128
//     4 bits (C = 256):  vector i holds vector 2 i of the group in the low nibbles, 2 i + 1 in the high ones
//     2 bits (C = 128):  vector p holds vectors 4 p + i of the group at bits 2 i and 2 i + 1
//     1 bit  (C = 64):   bit j of a lane is vector j of the group
//     high bits:         as codes of one or two bits, which come on top of the low ones
//
// A group's scales are one set of 16, one a row, or two, for columns 0 to 15 and 16 to 31; then its minima, alike. A
// set is 32 bytes of halves or 16 bytes; ScaleCode says which. A unit's scale multiplies those of its groups.
//
// A weight is scale * (code - offset) + minimum. Where a kind has a table, code - offset is the table's value instead.
//
// Of plain floats a unit is one group: for each of its 32 columns the weights of the 16 rows, 2 or 4 bytes each. They
// alone may have any number of columns.
#ifndef CPU_KERNELS_TILES_H_
#define CPU_KERNELS_TILES_H_

#include <cstddef>
#include <cstdint>

namespace realm {

constexpr int kTileRows = 16;
constexpr int kGroup = 32;
constexpr int kVectors = 8;  // of 64 codes a group

enum class TileKind : int32_t {
  kNibble,
  kNibbleMin,
  kFive,
  kFiveMin,
  kByte,
  kOne,
  kTernary,
  kQ2K,
  kQ3K,
  kQ4K,
  kQ5K,
  kQ6K,
  kQ8K,
  kIq4Nl,
  kIq4Xs,
  kMxfp4,
  kNvfp4,
  kIq1,
  kIq2,
  kIq3Xxs,
  kIq3S,
  kFloat32,
  kFloat16,
  kBfloat16,
};
constexpr int kTileKinds = 24;

// Whether tiles hold the weights themselves, which are multiplied by activations that nothing rounds.
constexpr bool IsPlain(TileKind kind) {
  return kind == TileKind::kFloat32 || kind == TileKind::kFloat16 || kind == TileKind::kBfloat16;
}

enum class ScaleCode {
  kNone,        // the unit's alone
  kHalf,        // float16
  kInteger,     // int8
  kPair,        // int8 = scale + 16 * (minimum - 8), both from 0 to 15
  kPowerOfTwo,  // int8 n: 2^n, and 0 for n = -127
  kE4M3,        // half of an e4m3 float without sign, bias 7
};

enum class UnitScale {
  kNone,
  kHalf,     // float16[16]
  kSingle,   // float32[16]
  kWithMin,  // float16[16], and float16[16] that multiply the groups' minima
};

struct TileGeometry {
  int groups;  // a unit
  int low_bits;
  int high_bits;
  int scales;  // sets a group
  ScaleCode scale_code;
  UnitScale unit_scale;
  bool has_min;
  int offset;

  constexpr int code_bytes() const { return 64 * low_bits; }    // a group
  constexpr int plane_bytes() const { return 64 * high_bits; }  // a group
  constexpr int set_bytes() const { return scale_code == ScaleCode::kHalf ? 32 : 16; }
  constexpr bool separate_min() const { return has_min && scale_code != ScaleCode::kPair; }
  constexpr int scale_bytes() const { return set_bytes() * scales * (separate_min() ? 2 : 1); }
  constexpr int unit_scale_bytes() const {
    return unit_scale == UnitScale::kNone ? 0 : unit_scale == UnitScale::kHalf ? 32 : 64;
  }
  constexpr int planes_at() const { return groups * code_bytes(); }
  constexpr int scales_at() const { return groups * (code_bytes() + plane_bytes()); }
  constexpr int unit_scale_at() const { return scales_at() + groups * scale_bytes(); }
  constexpr int unit_bytes() const { return unit_scale_at() + unit_scale_bytes(); }
  // Groups of a tile, the last one filled up with zeros, and the last unit with groups of zeros.
  constexpr int64_t padded_groups(int64_t columns) const {
    const int64_t used = (columns + kGroup - 1) / kGroup;
    return (used + groups - 1) / groups * groups;
  }
  constexpr int64_t tile_bytes(int64_t columns) const { return padded_groups(columns) / groups * unit_bytes(); }
};

// Units have as many groups as fill whole 64-byte lines, or as a block of the file has.
constexpr TileGeometry Geometry(TileKind kind) {
  using Code = ScaleCode;
  using Unit = UnitScale;
  switch (kind) {
    case TileKind::kNibble:
      return {2, 4, 0, 1, Code::kHalf, Unit::kNone, false, 8};
    case TileKind::kNibbleMin:
      return {1, 4, 0, 1, Code::kHalf, Unit::kNone, true, 0};
    case TileKind::kFive:
      return {2, 4, 1, 1, Code::kHalf, Unit::kNone, false, 16};
    case TileKind::kFiveMin:
      return {1, 4, 1, 1, Code::kHalf, Unit::kNone, true, 0};
    case TileKind::kByte:
      return {2, 8, 0, 1, Code::kHalf, Unit::kNone, false, 128};
    case TileKind::kOne:
      return {4, 1, 0, 0, Code::kNone, Unit::kHalf, false, 1};
    case TileKind::kTernary:
      return {8, 2, 0, 0, Code::kNone, Unit::kSingle, false, 1};
    case TileKind::kQ2K:
      return {8, 2, 0, 2, Code::kPair, Unit::kWithMin, true, 0};
    case TileKind::kQ3K:
      return {8, 2, 1, 2, Code::kInteger, Unit::kSingle, false, 4};
    case TileKind::kQ4K:
      return {8, 4, 0, 1, Code::kInteger, Unit::kWithMin, true, 0};
    case TileKind::kQ5K:
      return {8, 4, 1, 1, Code::kInteger, Unit::kWithMin, true, 0};
    case TileKind::kQ6K:
      return {8, 4, 2, 2, Code::kInteger, Unit::kSingle, false, 32};
    case TileKind::kQ8K:
      return {8, 8, 0, 0, Code::kNone, Unit::kSingle, false, 128};
    case TileKind::kIq4Nl:
      return {2, 4, 0, 1, Code::kHalf, Unit::kNone, false, 128};
    case TileKind::kIq4Xs:
      return {8, 4, 0, 1, Code::kInteger, Unit::kSingle, false, 128};
    case TileKind::kMxfp4:
      return {4, 4, 0, 1, Code::kPowerOfTwo, Unit::kNone, false, 12};
    case TileKind::kNvfp4:
      return {2, 4, 0, 2, Code::kE4M3, Unit::kNone, false, 12};
    case TileKind::kIq1:
      return {8, 4, 0, 2, Code::kInteger, Unit::kSingle, false, 9};
    case TileKind::kIq2:
      return {8, 4, 0, 2, Code::kInteger, Unit::kSingle, false, 43};
    case TileKind::kIq3Xxs:
      return {8, 4, 0, 1, Code::kInteger, Unit::kSingle, false, 62};
    case TileKind::kIq3S:
      return {8, 4, 0, 1, Code::kInteger, Unit::kSingle, false, 15};
    case TileKind::kFloat32:
      return {1, 32, 0, 0, Code::kNone, Unit::kNone, false, 0};
    case TileKind::kFloat16:
    case TileKind::kBfloat16:
      return {1, 16, 0, 0, Code::kNone, Unit::kNone, false, 0};
  }
  return {};
}

struct Table {
  int8_t values[16];
};

// What the four bits of a code stand for; all zeros where they stand for themselves. IQ1 counts in eighths.
constexpr Table TableOf(TileKind kind) {
  switch (kind) {
    case TileKind::kIq4Nl:
    case TileKind::kIq4Xs:
      return {{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}};
    case TileKind::kMxfp4:
    case TileKind::kNvfp4:
      return {{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}};
    case TileKind::kIq1:
      return {{-9, -7, -1, 1, 7, 9}};
    case TileKind::kIq2:
      return {{8, 25, 43, 0, 0, 0, 0, 0, -8, -25, -43}};
    case TileKind::kIq3Xxs:
      return {{4, 12, 20, 28, 36, 44, 52, 62, -4, -12, -20, -28, -36, -44, -52, -62}};
    case TileKind::kIq3S:
      return {{1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15}};
    default:
      return {};
  }
}

constexpr bool HasTable(TileKind kind) {
  for (int8_t value : TableOf(kind).values) {
    if (value != 0) return true;
  }
  return false;
}

}  // namespace realm

#endif  // CPU_KERNELS_TILES_H_
