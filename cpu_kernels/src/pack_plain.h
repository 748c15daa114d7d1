// Readers of blocks with one scale: Q1_0, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, TQ1_0, TQ2_0.
#ifndef CPU_KERNELS_PACK_PLAIN_H_
#define CPU_KERNELS_PACK_PLAIN_H_

#include "pack_blocks.h"

namespace realm {

// | d | bits 16 |
struct Q1_0 {
  static constexpr TileKind kKind = TileKind::kOne;
  static constexpr int kBytes = 18, kGroups = 4;
  static void Read(const uint8_t* bytes, Codebook, Block* block) {
    block->half = LoadWord16(bytes);
    for (int j = 0; j < kGroups; ++j) AddBits(bytes + 2 + 4 * j, 0, block->groups[j].codes);
  }
};

// | d | codes 16 |
struct Q4_0 {
  static constexpr TileKind kKind = TileKind::kNibble;
  static constexpr int kBytes = 18, kGroups = 1;
  static void Read(const uint8_t* bytes, Codebook, Block* block) {
    block->groups[0].scales[0] = LoadWord16(bytes);
    ReadNibbles(bytes + 2, block->groups[0].codes);
  }
};

// | d | m | codes 16 |
struct Q4_1 {
  static constexpr TileKind kKind = TileKind::kNibbleMin;
  static constexpr int kBytes = 20, kGroups = 1;
  static void Read(const uint8_t* bytes, Codebook, Block* block) {
    block->groups[0].scales[0] = LoadWord16(bytes);
    block->groups[0].mins[0] = LoadWord16(bytes + 2);
    ReadNibbles(bytes + 4, block->groups[0].codes);
  }
};

// | d | high bits 4 | codes 16 |
struct Q5_0 {
  static constexpr TileKind kKind = TileKind::kFive;
  static constexpr int kBytes = 22, kGroups = 1;
  static void Read(const uint8_t* bytes, Codebook, Block* block) {
    block->groups[0].scales[0] = LoadWord16(bytes);
    ReadNibbles(bytes + 6, block->groups[0].codes);
    AddBits(bytes + 2, 4, block->groups[0].codes);
  }
};

// | d | m | high bits 4 | codes 16 |
struct Q5_1 {
  static constexpr TileKind kKind = TileKind::kFiveMin;
  static constexpr int kBytes = 24, kGroups = 1;
  static void Read(const uint8_t* bytes, Codebook, Block* block) {
    block->groups[0].scales[0] = LoadWord16(bytes);
    block->groups[0].mins[0] = LoadWord16(bytes + 2);
    ReadNibbles(bytes + 8, block->groups[0].codes);
    AddBits(bytes + 4, 4, block->groups[0].codes);
  }
};

inline void ReadBytes(const uint8_t* bytes, uint8_t* codes) {
  for (int i = 0; i < kGroup; ++i) codes[i] = bytes[i] ^ 0x80;
}

// | d | codes 32 |
struct Q8_0 {
  static constexpr TileKind kKind = TileKind::kByte;
  static constexpr int kBytes = 34, kGroups = 1;
  static void Read(const uint8_t* bytes, Codebook, Block* block) {
    block->groups[0].scales[0] = LoadWord16(bytes);
    ReadBytes(bytes + 2, block->groups[0].codes);
  }
};

// | d | sum | codes 32 |: the sum serves other ways to multiply.
struct Q8_1 {
  static constexpr TileKind kKind = TileKind::kByte;
  static constexpr int kBytes = 36, kGroups = 1;
  static void Read(const uint8_t* bytes, Codebook, Block* block) {
    block->groups[0].scales[0] = LoadWord16(bytes);
    ReadBytes(bytes + 4, block->groups[0].codes);
  }
};

// | base-3 digits 48 | base-3 digits 4 | d |: five of 160 codes a byte in the first 32, of 80 in the next 16, then four
// of 16. A byte is the fraction 0.q0 q1 q2 q3 q4 in base 3, in units of 1/256 and rounded up.
struct TQ1_0 {
  static constexpr TileKind kKind = TileKind::kTernary;
  static constexpr int kBytes = 54, kGroups = 8;
  static void Read(const uint8_t* bytes, Codebook, Block* block) {
    block->single = LoadHalf(bytes + 52);
    ReadDigits(bytes, 32, 5, 0, block);
    ReadDigits(bytes + 32, 16, 5, 160, block);
    ReadDigits(bytes + 48, 4, 4, 240, block);
  }
  // Digit p of byte l is code `first` + `count` p + l.
  static void ReadDigits(const uint8_t* bytes, int count, int digits, int first, Block* block) {
    for (int l = 0; l < count; ++l) {
      uint8_t fraction = bytes[l];
      for (int p = 0; p < digits; ++p) {
        const int tripled = 3 * fraction;
        const int i = first + count * p + l;
        block->groups[i / kGroup].codes[i % kGroup] = static_cast<uint8_t>(tripled >> 8);
        fraction = static_cast<uint8_t>(tripled);
      }
    }
  }
};

// | codes 64 | d |
struct TQ2_0 {
  static constexpr TileKind kKind = TileKind::kTernary;
  static constexpr int kBytes = 66, kGroups = 8;
  static void Read(const uint8_t* bytes, Codebook, Block* block) {
    block->single = LoadHalf(bytes + 64);
    for (int j = 0; j < kGroups; ++j) ReadTwoBits(bytes, j, block->groups[j].codes);
  }
};

}  // namespace realm

#endif  // CPU_KERNELS_PACK_PLAIN_H_
