// Readers of super-blocks with scales of their sub-blocks: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K.
#ifndef CPU_KERNELS_PACK_KQUANTS_H_
#define CPU_KERNELS_PACK_KQUANTS_H_

#include <cstring>

#include "pack_blocks.h"
#include "pack_plain.h"

namespace realm {

// Minima are subtracted in a block and added in a tile.
inline void ReadScaleAndMin(const uint8_t* halves, Block* block) {
  block->half = LoadWord16(halves);
  block->min = LoadWord16(halves + 2) ^ 0x8000u;
}

// | scale, min 16 | codes 64 | d | dmin |: the low nibble is a scale.
struct Q2_K {
  static constexpr TileKind kKind = TileKind::kQ2K;
  static constexpr int kBytes = 84, kGroups = 8;
  static void Read(const uint8_t* bytes, Codebook, Block* block) {
    ReadScaleAndMin(bytes + 80, block);
    for (int j = 0; j < kGroups; ++j) {
      ReadTwoBits(bytes + 16, j, block->groups[j].codes);
      for (int h = 0; h < 2; ++h) block->groups[j].scales[h] = bytes[2 * j + h] ^ 0x80;
    }
  }
};

// | high bits 32 | low bits 64 | scales 12 | d |
//
// Scale k has its low four bits in nibble k of bytes 0 to 7, the low nibbles first, and the two high ones in field k /
// 4 of byte 8 + k % 4.
struct Q3_K {
  static constexpr TileKind kKind = TileKind::kQ3K;
  static constexpr int kBytes = 110, kGroups = 8;
  static void Read(const uint8_t* bytes, Codebook, Block* block) {
    block->single = LoadHalf(bytes + 108);
    for (int j = 0; j < kGroups; ++j) {
      Group* group = block->groups + j;
      ReadTwoBits(bytes + 32, j, group->codes);
      for (int i = 0; i < kGroup; ++i) {
        group->codes[i] = static_cast<uint8_t>(group->codes[i] | (bytes[i] >> j & 1) << 2);
      }
      for (int h = 0; h < 2; ++h) group->scales[h] = static_cast<uint8_t>(Scale(bytes + 96, 2 * j + h) - 32);
    }
  }
  static int Scale(const uint8_t* packed, int k) {
    const int low = packed[k % 8] >> 4 * (k / 8) & 15;
    return low | (packed[8 + k % 4] >> 2 * (k / 4) & 3) << 4;
  }
};

// The 6-bit scale and minimum of sub-block j, out of the 12 bytes that Q4_K and Q5_K share:
//
//     byte 0..3: | scale 4..7, high 2 | scale 0..3 |       byte 4..7: | min 4..7, high 2 | min 0..3 |
//     byte 8..11: | min 4..7, low 4 | scale 4..7, low 4 |
inline void ReadSixBitScales(const uint8_t* packed, int j, Group* group) {
  if (j < 4) {
    group->scales[0] = packed[j] & 63;
    group->mins[0] = packed[4 + j] & 63;
  } else {
    group->scales[0] = static_cast<uint16_t>((packed[4 + j] & 15) | (packed[j - 4] >> 6) << 4);
    group->mins[0] = static_cast<uint16_t>(packed[4 + j] >> 4 | (packed[j] >> 6) << 4);
  }
}

inline void ReadSubBlock(const uint8_t* scales, const uint8_t* nibbles, int j, Group* group) {
  ReadSixBitScales(scales, j, group);
  const uint8_t* own = nibbles + kGroup * (j / 2);
  for (int i = 0; i < kGroup; ++i) group->codes[i] = own[i] >> 4 * (j % 2) & 15;
}

// | d | dmin | scales 12 | codes 128 |
struct Q4_K {
  static constexpr TileKind kKind = TileKind::kQ4K;
  static constexpr int kBytes = 144, kGroups = 8;
  static void Read(const uint8_t* bytes, Codebook, Block* block) {
    ReadScaleAndMin(bytes, block);
    for (int j = 0; j < kGroups; ++j) ReadSubBlock(bytes + 4, bytes + 16, j, block->groups + j);
  }
};

// | d | dmin | scales 12 | high bits 32 | codes 128 |
struct Q5_K {
  static constexpr TileKind kKind = TileKind::kQ5K;
  static constexpr int kBytes = 176, kGroups = 8;
  static void Read(const uint8_t* bytes, Codebook, Block* block) {
    ReadScaleAndMin(bytes, block);
    for (int j = 0; j < kGroups; ++j) {
      Group* group = block->groups + j;
      ReadSubBlock(bytes + 4, bytes + 48, j, group);
      for (int i = 0; i < kGroup; ++i) {
        group->codes[i] = static_cast<uint8_t>(group->codes[i] | (bytes[16 + i] >> j & 1) << 4);
      }
    }
  }
};

// | low nibbles 128 | high bits 64 | scales 16 | d |
struct Q6_K {
  static constexpr TileKind kKind = TileKind::kQ6K;
  static constexpr int kBytes = 210, kGroups = 8;
  static void Read(const uint8_t* bytes, Codebook, Block* block) {
    block->single = LoadHalf(bytes + 208);
    for (int j = 0; j < kGroups; ++j) {
      const uint8_t* low = bytes + 64 * (j / 4) + 32 * (j % 2);
      const uint8_t* high = bytes + 128 + 32 * (j / 4);
      const int quarter = j % 4;
      Group* group = block->groups + j;
      for (int i = 0; i < kGroup; ++i) {
        const int nibble = low[i] >> 4 * (quarter / 2) & 15;
        group->codes[i] = static_cast<uint8_t>(nibble | (high[i] >> 2 * quarter & 3) << 4);
      }
      for (int h = 0; h < 2; ++h) group->scales[h] = bytes[192 + 2 * j + h];
    }
  }
};

// | d float32 | codes 256 | sums 32 |: the sums serve other ways to multiply.
struct Q8_K {
  static constexpr TileKind kKind = TileKind::kQ8K;
  static constexpr int kBytes = 292, kGroups = 8;
  static void Read(const uint8_t* bytes, Codebook, Block* block) {
    std::memcpy(&block->single, bytes, 4);
    for (int j = 0; j < kGroups; ++j) ReadBytes(bytes + 4 + kGroup * j, block->groups[j].codes);
  }
};

}  // namespace realm

#endif  // CPU_KERNELS_PACK_KQUANTS_H_
