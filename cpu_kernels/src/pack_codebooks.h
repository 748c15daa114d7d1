// Readers of blocks whose codes number values: IQ4, MXFP4, NVFP4 each weight's, IQ1, IQ2 and IQ3 those of 4 or 8 at
// once.
#ifndef CPU_KERNELS_PACK_CODEBOOKS_H_
#define CPU_KERNELS_PACK_CODEBOOKS_H_

#include <cstring>

#include "pack_blocks.h"

namespace realm {

// | d | codes 16 |
struct IQ4_NL {
  static constexpr TileKind kKind = TileKind::kIq4Nl;
  static constexpr int kBytes = 18, kGroups = 1;
  static void Read(const uint8_t* bytes, Codebook, Block* block) {
    block->groups[0].scales[0] = LoadWord16(bytes);
    ReadNibbles(bytes + 2, block->groups[0].codes);
  }
};

// | d | scales, high 2 bits | scales, low nibbles 4 | codes 128 |
struct IQ4_XS {
  static constexpr TileKind kKind = TileKind::kIq4Xs;
  static constexpr int kBytes = 136, kGroups = 8;
  static void Read(const uint8_t* bytes, Codebook, Block* block) {
    block->single = LoadHalf(bytes);
    const int high = LoadWord16(bytes + 2);
    for (int j = 0; j < kGroups; ++j) {
      const int scale = Nibble(bytes + 4, j) | (high >> 2 * j & 3) << 4;
      block->groups[j].scales[0] = static_cast<uint8_t>(scale - 32);
      ReadNibbles(bytes + 8 + 16 * j, block->groups[j].codes);
    }
  }
};

// | e8m0 exponent | codes 16 |: the scale is 2^(e - 128). Where that is no normal float32, for e below 2, it counts as
// zero, as it does in XLA.
struct MXFP4 {
  static constexpr TileKind kKind = TileKind::kMxfp4;
  static constexpr int kBytes = 17, kGroups = 1;
  static void Read(const uint8_t* bytes, Codebook, Block* block) {
    block->groups[0].scales[0] = static_cast<uint8_t>((bytes[0] > 1 ? bytes[0] : 1) - 128);
    ReadNibbles(bytes + 1, block->groups[0].codes);
  }
};

// | e4m3 scales 4 | codes 32 |: a scale for 16 weights, of which it is half; 0x7f counts as zero.
struct NVFP4 {
  static constexpr TileKind kKind = TileKind::kNvfp4;
  static constexpr int kBytes = 36, kGroups = 2;
  static void Read(const uint8_t* bytes, Codebook, Block* block) {
    for (int j = 0; j < 2 * kGroups; ++j) {
      Group* group = block->groups + j / 2;
      group->scales[j % 2] = bytes[j] == 0x7f ? 0 : bytes[j] & 0x7f;
      for (int i = 0; i < 8; ++i) {
        const uint8_t pair = bytes[4 + 8 * j + i];
        group->codes[16 * (j % 2) + i] = pair & 15;
        group->codes[16 * (j % 2) + 8 + i] = pair >> 4;
      }
    }
  }
};

// Of a code, bit 3 is the sign and the others number the magnitude.
template <int count>
inline void ReadVector(Codebook codebook, int index, int signs, uint8_t* codes) {
  uint64_t vector = 0;
  std::memcpy(&vector, codebook + count * index, count);
  vector |= SpreadBits(static_cast<uint64_t>(signs)) << 3;
  std::memcpy(codes, &vector, count);
}

// Seven bits are eight signs: an even number of them is negative.
inline int EightSigns(uint32_t seven) {
  seven &= 127;
  return static_cast<int>(seven | (__builtin_popcount(seven) & 1u) << 7);
}

inline void SetScales(int first, int second, Group* group) {
  group->scales[0] = static_cast<uint16_t>(first);
  group->scales[1] = static_cast<uint16_t>(second);
}

// | d | 8 x { indices 4 | signs 28 bits, scale 4 bits } |
struct IQ2_XXS {
  static constexpr TileKind kKind = TileKind::kIq2;
  static constexpr int kBytes = 66, kGroups = 8;
  static void Read(const uint8_t* bytes, Codebook codebook, Block* block) {
    block->single = LoadHalf(bytes) / 8;
    for (int j = 0; j < kGroups; ++j) {
      const uint8_t* own = bytes + 2 + 8 * j;
      const uint32_t tail = LoadWord32(own + 4);
      const int scale = static_cast<int>(2 * (tail >> 28) + 1);
      SetScales(scale, scale, block->groups + j);
      for (int v = 0; v < 4; ++v) {
        ReadVector<8>(codebook, own[v], EightSigns(tail >> 7 * v), block->groups[j].codes + 8 * v);
      }
    }
  }
};

// | d | 32 x { index 9 bits, signs 7 bits } | scales 8 |
struct IQ2_XS {
  static constexpr TileKind kKind = TileKind::kIq2;
  static constexpr int kBytes = 74, kGroups = 8;
  static void Read(const uint8_t* bytes, Codebook codebook, Block* block) {
    block->single = LoadHalf(bytes) / 8;
    for (int j = 0; j < kGroups; ++j) {
      SetScales(2 * Nibble(bytes + 66, 2 * j) + 1, 2 * Nibble(bytes + 66, 2 * j + 1) + 1, block->groups + j);
      for (int v = 0; v < 4; ++v) {
        const uint32_t word = LoadWord16(bytes + 2 + 8 * j + 2 * v);
        ReadVector<8>(codebook, static_cast<int>(word & 511), EightSigns(word >> 9), block->groups[j].codes + 8 * v);
      }
    }
  }
};

// | d | indices 32 | signs 32 | indices, high 2 bits 8 | scales 8 |
struct IQ2_S {
  static constexpr TileKind kKind = TileKind::kIq2;
  static constexpr int kBytes = 82, kGroups = 8;
  static void Read(const uint8_t* bytes, Codebook codebook, Block* block) {
    block->single = LoadHalf(bytes) / 8;
    for (int j = 0; j < kGroups; ++j) {
      SetScales(2 * Nibble(bytes + 74, 2 * j) + 1, 2 * Nibble(bytes + 74, 2 * j + 1) + 1, block->groups + j);
      for (int v = 0; v < 4; ++v) {
        const int index = bytes[2 + 4 * j + v] | (bytes[66 + j] >> 2 * v & 3) << 8;
        ReadVector<8>(codebook, index, bytes[34 + 4 * j + v], block->groups[j].codes + 8 * v);
      }
    }
  }
};

// | d | indices 64 | 8 x { signs 28 bits, scale 4 bits } |
struct IQ3_XXS {
  static constexpr TileKind kKind = TileKind::kIq3Xxs;
  static constexpr int kBytes = 98, kGroups = 8;
  static void Read(const uint8_t* bytes, Codebook codebook, Block* block) {
    block->single = LoadHalf(bytes) / 4;
    for (int j = 0; j < kGroups; ++j) {
      const uint32_t tail = LoadWord32(bytes + 66 + 4 * j);
      block->groups[j].scales[0] = static_cast<uint16_t>(2 * (tail >> 28) + 1);
      for (int v = 0; v < 8; ++v) {
        const int signs = EightSigns(tail >> 7 * (v / 2)) >> 4 * (v % 2);
        ReadVector<4>(codebook, bytes[2 + 8 * j + v], signs, block->groups[j].codes + 4 * v);
      }
    }
  }
};

// | d | indices 64 | indices, high bit 8 | signs 32 | scales 4 |
struct IQ3_S {
  static constexpr TileKind kKind = TileKind::kIq3S;
  static constexpr int kBytes = 110, kGroups = 8;
  static void Read(const uint8_t* bytes, Codebook codebook, Block* block) {
    block->single = LoadHalf(bytes);
    for (int j = 0; j < kGroups; ++j) {
      block->groups[j].scales[0] = static_cast<uint16_t>(2 * Nibble(bytes + 106, j) + 1);
      for (int v = 0; v < 8; ++v) {
        const int index = bytes[2 + 8 * j + v] | (bytes[66 + j] >> v & 1) << 8;
        const int signs = bytes[74 + 4 * j + v / 2] >> 4 * (v % 2);
        ReadVector<4>(codebook, index, signs, block->groups[j].codes + 4 * v);
      }
    }
  }
};

// Eight times (level - 1) +- 1, the table's values in ascending order.
inline void ReadShifted(Codebook codebook, int index, bool below, uint8_t* codes) {
  uint64_t vector;
  std::memcpy(&vector, codebook + 8 * index, 8);
  vector = vector << 1 | (below ? 0 : 0x0101010101010101u);
  std::memcpy(codes, &vector, 8);
}

// | d | indices 32 | 8 x { indices, high 3 bits x 4, scale 3 bits, whether the shift is down } |
struct IQ1_S {
  static constexpr TileKind kKind = TileKind::kIq1;
  static constexpr int kBytes = 50, kGroups = 8;
  static void Read(const uint8_t* bytes, Codebook codebook, Block* block) {
    block->single = LoadHalf(bytes) / 8;
    for (int j = 0; j < kGroups; ++j) {
      const int word = LoadWord16(bytes + 34 + 2 * j);
      const int scale = 2 * (word >> 12 & 7) + 1;
      SetScales(scale, scale, block->groups + j);
      for (int v = 0; v < 4; ++v) {
        const int index = bytes[2 + 4 * j + v] | (word >> 3 * v & 7) << 8;
        ReadShifted(codebook, index, (word >> 15) != 0, block->groups[j].codes + 8 * v);
      }
    }
  }
};

// | indices 32 | 32 x { index, high 3 bits, whether the shift is down } | 4 x { scale 3 bits x 4, nibble of d } |
struct IQ1_M {
  static constexpr TileKind kKind = TileKind::kIq1;
  static constexpr int kBytes = 56, kGroups = 8;
  static void Read(const uint8_t* bytes, Codebook codebook, Block* block) {
    uint32_t d = 0;
    for (int k = 0; k < 4; ++k) d |= (LoadWord16(bytes + 48 + 2 * k) >> 12u) << 4 * k;
    block->single = HalfToFloat(static_cast<uint16_t>(d)) / 8;
    for (int j = 0; j < kGroups; ++j) {
      const int scales = LoadWord16(bytes + 48 + 2 * (j / 2)) >> 6 * (j % 2);
      SetScales(2 * (scales & 7) + 1, 2 * (scales >> 3 & 7) + 1, block->groups + j);
      for (int v = 0; v < 4; ++v) {
        const int high = Nibble(bytes + 32, 4 * j + v);
        const int index = bytes[4 * j + v] | (high & 7) << 8;
        ReadShifted(codebook, index, high >= 8, block->groups[j].codes + 8 * v);
      }
    }
  }
};

}  // namespace realm

#endif  // CPU_KERNELS_PACK_CODEBOOKS_H_
