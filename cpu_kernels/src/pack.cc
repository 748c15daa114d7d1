// Repacking of GGML blocks, as a file holds them, into tiles.
#include <cstdint>
#include <cstring>

#include "export.h"
#include "half.h"
#include "tiles.h"

namespace realm {
namespace {

// One group of one row on its way from a block to a tile.
struct Group {
  uint8_t codes[kGroup];
  uint16_t scales[2];  // float16 bits
  uint16_t min;
};

uint16_t LoadHalf(const uint8_t* bytes) { return static_cast<uint16_t>(bytes[0] | bytes[1] << 8); }

void ReadNibbles(const uint8_t* nibbles, uint8_t* codes) {
  for (int i = 0; i < 16; ++i) {
    codes[i] = nibbles[i] & 15;
    codes[16 + i] = nibbles[i] >> 4;
  }
}

// Bit i of the word is bit 4 of code i.
void AddHighBits(const uint8_t* word, uint8_t* codes) {
  for (int i = 0; i < kGroup; ++i) codes[i] = static_cast<uint8_t>(codes[i] | (word[i / 8] >> i % 8 & 1) << 4);
}

// f16(d * factor). A product in float16's subnormal range is exact, being a multiple of 2^-24 as d is; the rounding is
// therefore at most 2^-11 of the product. False where a finite product exceeds float16.
bool Fold(uint16_t d, int factor, uint16_t* folded) {
  *folded = FloatToHalf(HalfToFloat(d) * static_cast<float>(factor));
  return (*folded & 0x7c00u) != 0x7c00u || (d & 0x7c00u) == 0x7c00u;
}

// | d | codes 16 |
struct Q4_0 {
  static constexpr TileKind kKind = TileKind::kNibble;
  static constexpr int kBytes = 18, kGroups = 1;
  static bool Read(const uint8_t* block, Group* groups) {
    groups->scales[0] = LoadHalf(block);
    ReadNibbles(block + 2, groups->codes);
    return true;
  }
};

// | d | m | codes 16 |
struct Q4_1 {
  static constexpr TileKind kKind = TileKind::kNibbleMin;
  static constexpr int kBytes = 20, kGroups = 1;
  static bool Read(const uint8_t* block, Group* groups) {
    groups->scales[0] = LoadHalf(block);
    groups->min = LoadHalf(block + 2);
    ReadNibbles(block + 4, groups->codes);
    return true;
  }
};

// | d | high bits 4 | codes 16 |
struct Q5_0 {
  static constexpr TileKind kKind = TileKind::kFive;
  static constexpr int kBytes = 22, kGroups = 1;
  static bool Read(const uint8_t* block, Group* groups) {
    groups->scales[0] = LoadHalf(block);
    ReadNibbles(block + 6, groups->codes);
    AddHighBits(block + 2, groups->codes);
    return true;
  }
};

// | d | m | high bits 4 | codes 16 |
struct Q5_1 {
  static constexpr TileKind kKind = TileKind::kFiveMin;
  static constexpr int kBytes = 24, kGroups = 1;
  static bool Read(const uint8_t* block, Group* groups) {
    groups->scales[0] = LoadHalf(block);
    groups->min = LoadHalf(block + 2);
    ReadNibbles(block + 8, groups->codes);
    AddHighBits(block + 4, groups->codes);
    return true;
  }
};

// | d | codes 32 |
struct Q8_0 {
  static constexpr TileKind kKind = TileKind::kByte;
  static constexpr int kBytes = 34, kGroups = 1;
  static bool Read(const uint8_t* block, Group* groups) {
    groups->scales[0] = LoadHalf(block);
    for (int i = 0; i < kGroup; ++i) groups->codes[i] = block[2 + i] ^ 0x80;
    return true;
  }
};

// The 6-bit scale and minimum of sub-block j, out of the 12 bytes that Q4_K and Q5_K share:
//
//     byte 0..3: | scale 4..7, high 2 | scale 0..3 |       byte 4..7: | min 4..7, high 2 | min 0..3 |
//     byte 8..11: | min 4..7, low 4 | scale 4..7, low 4 |
void SixBitScales(const uint8_t* packed, int j, int* scale, int* min) {
  if (j < 4) {
    *scale = packed[j] & 63;
    *min = packed[4 + j] & 63;
  } else {
    *scale = (packed[4 + j] & 15) | (packed[j - 4] >> 6) << 4;
    *min = packed[4 + j] >> 4 | (packed[j] >> 6) << 4;
  }
}

bool ReadSubBlock(const uint8_t* block, const uint8_t* nibbles, int j, Group* group) {
  int scale = 0;
  int min = 0;
  SixBitScales(block + 4, j, &scale, &min);
  const bool fits = Fold(LoadHalf(block), scale, &group->scales[0]);
  const bool min_fits = Fold(LoadHalf(block + 2), -min, &group->min);
  const uint8_t* own = nibbles + 32 * (j / 2);
  for (int i = 0; i < kGroup; ++i) group->codes[i] = j % 2 ? own[i] >> 4 : own[i] & 15;
  return fits && min_fits;
}

// | d | dmin | scales 12 | codes 128 |
struct Q4_K {
  static constexpr TileKind kKind = TileKind::kNibbleMin;
  static constexpr int kBytes = 144, kGroups = 8;
  static bool Read(const uint8_t* block, Group* groups) {
    bool fits = true;
    for (int j = 0; j < kGroups; ++j) fits &= ReadSubBlock(block, block + 16, j, groups + j);
    return fits;
  }
};

// | d | dmin | scales 12 | high bits 32 | codes 128 |
struct Q5_K {
  static constexpr TileKind kKind = TileKind::kFiveMin;
  static constexpr int kBytes = 176, kGroups = 8;
  static bool Read(const uint8_t* block, Group* groups) {
    bool fits = true;
    for (int j = 0; j < kGroups; ++j) {
      fits &= ReadSubBlock(block, block + 48, j, groups + j);
      for (int i = 0; i < kGroup; ++i) {
        groups[j].codes[i] = static_cast<uint8_t>(groups[j].codes[i] | (block[16 + i] >> j & 1) << 4);
      }
    }
    return fits;
  }
};

// | low nibbles 128 | high bits 64 | scales 16 | d |
struct Q6_K {
  static constexpr TileKind kKind = TileKind::kSix;
  static constexpr int kBytes = 210, kGroups = 8;
  static bool Read(const uint8_t* block, Group* groups) {
    const uint16_t d = LoadHalf(block + 208);
    bool fits = true;
    for (int j = 0; j < kGroups; ++j) {
      const uint8_t* low = block + 64 * (j / 4) + 32 * (j % 2);
      const uint8_t* high = block + 128 + 32 * (j / 4);
      const int quarter = j % 4;
      for (int i = 0; i < kGroup; ++i) {
        const int nibble = quarter < 2 ? low[i] & 15 : low[i] >> 4;
        groups[j].codes[i] = static_cast<uint8_t>(nibble | (high[i] >> 2 * quarter & 3) << 4);
      }
      for (int s = 0; s < 2; ++s) {
        fits &= Fold(d, static_cast<int8_t>(block[192 + 2 * j + s]), &groups[j].scales[s]);
      }
    }
    return fits;
  }
};

uint32_t LoadWord(const uint8_t* bytes) {
  uint32_t word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

// Lanes of a row are four bytes: codes move as words, whose bytes never mix.
template <TileKind kind>
void WriteGroup(const Group& group, int slot, int row, uint8_t* unit) {
  constexpr TileGeometry geometry = Geometry(kind);
  uint8_t* codes = unit + slot * geometry.code_bytes + 4 * row;
  uint8_t* planes = unit + geometry.planes_at() + slot * geometry.plane_bytes + 4 * row;
  uint8_t* scales = unit + geometry.scales_at() + slot * geometry.scale_bytes() + 2 * row;
  uint32_t words[kVectors];
  for (int j = 0; j < kVectors; ++j) words[j] = LoadWord(group.codes + 4 * j);
  if constexpr (kind == TileKind::kByte) {
    for (int j = 0; j < kVectors; ++j) std::memcpy(codes + 64 * j, &words[j], 4);
  } else {
    for (int i = 0; i < kVectors / 2; ++i) {
      const uint32_t pair = (words[2 * i] & 0x0f0f0f0fu) | (words[2 * i + 1] & 0x0f0f0f0fu) << 4;
      std::memcpy(codes + 64 * i, &pair, 4);
    }
  }
  constexpr int bits = geometry.plane_bytes / 64;
  if constexpr (bits > 0) {
    constexpr int vectors = kVectors / bits;
    constexpr uint32_t mask = bits == 1 ? 0x01010101u : 0x03030303u;
    for (int p = 0; p < bits; ++p) {
      uint32_t plane = 0;
      for (int i = 0; i < vectors; ++i) plane |= (words[p * vectors + i] >> 4 & mask) << bits * i;
      std::memcpy(planes + 64 * p, &plane, 4);
    }
  }
  for (int s = 0; s < geometry.scales; ++s) std::memcpy(scales + 32 * s, &group.scales[s], 2);
  if constexpr (geometry.has_min) std::memcpy(scales + 32 * geometry.scales, &group.min, 2);
}

// Tiles [first, last) of a matrix; rows past its end and groups past its columns are zeros.
template <class Format>
bool PackTiles(const uint8_t* blocks, int64_t rows, int64_t columns, int64_t first, int64_t last, uint8_t* tiles) {
  constexpr TileGeometry geometry = Geometry(Format::kKind);
  const int64_t tile_bytes = geometry.tile_bytes(columns);
  const int64_t row_blocks = columns / (kGroup * Format::kGroups);
  bool fits = true;
  for (int64_t tile = first; tile < last; ++tile) {
    uint8_t* out = tiles + tile * tile_bytes;
    std::memset(out, 0, static_cast<size_t>(tile_bytes));
    for (int row = 0; row < kTileRows && tile * kTileRows + row < rows; ++row) {
      const uint8_t* block = blocks + (tile * kTileRows + row) * row_blocks * Format::kBytes;
      for (int64_t b = 0; b < row_blocks; ++b, block += Format::kBytes) {
        Group groups[Format::kGroups];
        fits &= Format::Read(block, groups);
        for (int j = 0; j < Format::kGroups; ++j) {
          const int64_t g = b * Format::kGroups + j;
          uint8_t* unit = out + g / geometry.groups * geometry.unit_bytes();
          WriteGroup<Format::kKind>(groups[j], static_cast<int>(g % geometry.groups), row, unit);
        }
      }
    }
  }
  return fits;
}

struct Packer {
  bool (*pack)(const uint8_t*, int64_t, int64_t, int64_t, int64_t, uint8_t*);
  int64_t block_columns;
  int64_t block_bytes;
};

template <class Format>
constexpr Packer MakePacker() {
  return {PackTiles<Format>, kGroup * Format::kGroups, Format::kBytes};
}

// In the order of the formats in tiles.py.
constexpr Packer kPackers[] = {MakePacker<Q4_0>(), MakePacker<Q4_1>(), MakePacker<Q5_0>(), MakePacker<Q5_1>(),
                               MakePacker<Q8_0>(), MakePacker<Q4_K>(), MakePacker<Q5_K>(), MakePacker<Q6_K>()};

}  // namespace
}  // namespace realm

// Bytes of the blocks of a row, or 0 where whole blocks do not make so many columns.
REALM_EXPORT int64_t realm_row_bytes(int32_t format, int64_t columns) {
  const realm::Packer& packer = realm::kPackers[format];
  return columns % packer.block_columns == 0 ? columns / packer.block_columns * packer.block_bytes : 0;
}

// Packs tiles [first, last) of `rows` x `columns` weights; false where a scale does not fit float16. Calls for separate
// ranges may run at the same time.
REALM_EXPORT bool realm_pack_tiles(int32_t format, const uint8_t* blocks, int64_t rows, int64_t columns, int64_t first,
                                   int64_t last, uint8_t* tiles) {
  return realm::kPackers[format].pack(blocks, rows, columns, first, last, tiles);
}
