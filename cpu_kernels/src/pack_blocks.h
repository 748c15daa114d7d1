// What the readers of GGML blocks share: a block on its way into tiles, and the pieces that blocks are made of.
#ifndef CPU_KERNELS_PACK_BLOCKS_H_
#define CPU_KERNELS_PACK_BLOCKS_H_

#include <cstdint>
#include <cstring>

#include "half.h"
#include "tiles.h"

namespace realm {

// One group of one row; `scales` and `mins` are halves, or bytes in the low half.
struct Group {
  uint8_t codes[kGroup];
  uint16_t scales[2];
  uint16_t mins[2];
};

// One block of one row: what a tile of its kind has of it.
struct Block {
  static constexpr int kMostGroups = 8;
  Group groups[kMostGroups];
  float single;
  uint16_t half;
  uint16_t min;
};

// A codebook: for each index, the numbers of the levels of its weights, lowest first.
using Codebook = const uint8_t*;

inline uint16_t LoadWord16(const uint8_t* bytes) { return static_cast<uint16_t>(bytes[0] | bytes[1] << 8); }

inline uint32_t LoadWord32(const uint8_t* bytes) {
  return LoadWord16(bytes) | static_cast<uint32_t>(LoadWord16(bytes + 2)) << 16;
}

inline float LoadHalf(const uint8_t* bytes) { return HalfToFloat(LoadWord16(bytes)); }

// Half i of an array of nibbles, low ones first.
inline int Nibble(const uint8_t* bytes, int i) { return bytes[i / 2] >> 4 * (i % 2) & 15; }

inline void ReadNibbles(const uint8_t* nibbles, uint8_t* codes) {
  for (int i = 0; i < 16; ++i) {
    codes[i] = nibbles[i] & 15;
    codes[16 + i] = nibbles[i] >> 4;
  }
}

// Bit i of a byte as byte i of a word: seven copies, each seven bits further, carry nothing into one another.
inline uint64_t SpreadBits(uint64_t byte) {
  const uint64_t seven = (byte & 0x7f) * 0x0000040810204081u & 0x0101010101010101u;
  return seven | byte >> 7 << 56;
}

// Bit i of four bytes is bit `at` of code i.
inline void AddBits(const uint8_t* bytes, int at, uint8_t* codes) {
  for (int i = 0; i < kGroup / 8; ++i) {
    uint64_t eight;
    std::memcpy(&eight, codes + 8 * i, sizeof eight);
    eight |= SpreadBits(bytes[i]) << at;
    std::memcpy(codes + 8 * i, &eight, sizeof eight);
  }
}

// Two bits a code: group 4 h + p of a super-block is plane p of bytes 32 h to 32 h + 31.
inline void ReadTwoBits(const uint8_t* bytes, int group, uint8_t* codes) {
  const uint8_t* own = bytes + kGroup * (group / 4);
  for (int i = 0; i < kGroup; ++i) codes[i] = own[i] >> 2 * (group % 4) & 3;
}

}  // namespace realm

#endif  // CPU_KERNELS_PACK_BLOCKS_H_
