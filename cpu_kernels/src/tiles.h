// The tile layout of packed weights: which bytes hold which codes, scales and minima.
//
// A tile is 16 rows of a matrix, all their columns, in one contiguous stream. It is a sequence of units of one or two
// groups; a group is 32 columns. A unit of U groups, each with C bytes of codes, P of high bits and S of scales:
//
//     | codes of group 0 | ... | high bits of group 0 | ... | scales of group 0 | ... |
//     0                  C    UC                    UC+P  U(C+P)            U(C+P)+S
//
// Byte lane 4 r + k of a 64-byte vector belongs to row r; vector j of a group holds columns 4 j + k.
//
//     nibbles (C = 256):   vector i holds vector 2 i of the group in the low nibbles, 2 i + 1 in the high ones
//     bytes   (C = 512):   vector j of the group, value + 128
//     one high bit (P = 64):    bit j of a lane is bit 4 of vector j
//     two high bits (P = 128):  plane p holds vectors 4 p + i, bits 4 and 5, at bits 2 i and 2 i + 1
//     scales:  float16[16], one a row; kSix has a second set for columns 16 to 31; kinds with minima have them last
//
// A weight is scale * (code - offset), or scale * code + minimum.
#ifndef CPU_KERNELS_TILES_H_
#define CPU_KERNELS_TILES_H_

#include <cstddef>
#include <cstdint>

namespace realm {

constexpr int kTileRows = 16;
constexpr int kGroup = 32;
constexpr int kVectors = 8;  // of 64 codes a group

enum class TileKind : int32_t { kNibble, kNibbleMin, kFive, kFiveMin, kSix, kByte };
constexpr int kTileKinds = 6;

struct TileGeometry {
  int groups;       // a unit
  int code_bytes;   // a group
  int plane_bytes;  // a group
  int scales;       // a group
  bool has_min;
  int offset;

  constexpr int scale_bytes() const { return 32 * (scales + (has_min ? 1 : 0)); }
  constexpr int unit_bytes() const { return groups * (code_bytes + plane_bytes + scale_bytes()); }
  constexpr int planes_at() const { return groups * code_bytes; }
  constexpr int scales_at() const { return groups * (code_bytes + plane_bytes); }
  // Groups of a tile, the last unit filled up with groups of zeros.
  constexpr int64_t padded_groups(int64_t columns) const {
    const int64_t used = columns / kGroup;
    return (used + groups - 1) / groups * groups;
  }
  constexpr int64_t tile_bytes(int64_t columns) const { return padded_groups(columns) / groups * unit_bytes(); }
};

// Units have two groups where one would not fill whole 64-byte lines.
constexpr TileGeometry Geometry(TileKind kind) {
  switch (kind) {
    case TileKind::kNibble:
      return {2, 256, 0, 1, false, 8};
    case TileKind::kNibbleMin:
      return {1, 256, 0, 1, true, 0};
    case TileKind::kFive:
      return {2, 256, 64, 1, false, 16};
    case TileKind::kFiveMin:
      return {1, 256, 64, 1, true, 0};
    case TileKind::kSix:
      return {1, 256, 128, 2, false, 32};
    case TileKind::kByte:
      return {2, 512, 0, 1, false, 128};
  }
  return {};
}

}  // namespace realm

#endif  // CPU_KERNELS_TILES_H_
