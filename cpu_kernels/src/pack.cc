// Repacking of GGML blocks, as a file holds them, into tiles.
#include <cstdint>
#include <cstring>

#include "export.h"
#include "pack_blocks.h"
#include "pack_codebooks.h"
#include "pack_kquants.h"
#include "pack_plain.h"
#include "tiles.h"

namespace realm {
namespace {

using Words = uint32_t[kVectors];

// Bits from `from` on, `width` a code, of all vectors of a group, in as many words.
template <int width, int from>
void WritePlanes(const Words& words, uint8_t* planes) {
  constexpr int vectors = 8 / width;
  constexpr uint32_t mask = width == 1 ? 0x01010101u : 0x03030303u;
  for (int p = 0; p < width; ++p) {
    uint32_t plane = 0;
    for (int i = 0; i < vectors; ++i) plane |= (words[p * vectors + i] >> from & mask) << width * i;
    std::memcpy(planes + 64 * p, &plane, 4);
  }
}

// Lanes of a row are four bytes: codes move as words, whose bytes never mix.
template <TileKind kind>
void WriteCodes(const Group& group, uint8_t* codes, uint8_t* planes) {
  constexpr TileGeometry geometry = Geometry(kind);
  Words words;
  std::memcpy(words, group.codes, sizeof words);
  if constexpr (geometry.low_bits == 8) {
    for (int j = 0; j < kVectors; ++j) std::memcpy(codes + 64 * j, &words[j], 4);
  } else if constexpr (geometry.low_bits == 4) {
    for (int i = 0; i < kVectors / 2; ++i) {
      const uint32_t pair = (words[2 * i] & 0x0f0f0f0fu) | (words[2 * i + 1] & 0x0f0f0f0fu) << 4;
      std::memcpy(codes + 64 * i, &pair, 4);
    }
  } else {
    WritePlanes<geometry.low_bits, 0>(words, codes);
  }
  if constexpr (geometry.high_bits > 0) WritePlanes<geometry.high_bits, geometry.low_bits>(words, planes);
}

template <TileKind kind>
void WriteGroup(const Group& group, int slot, int row, uint8_t* unit) {
  constexpr TileGeometry geometry = Geometry(kind);
  constexpr int width = geometry.set_bytes() / kTileRows;
  uint8_t* planes = unit + geometry.planes_at() + slot * geometry.plane_bytes() + 4 * row;
  WriteCodes<kind>(group, unit + slot * geometry.code_bytes() + 4 * row, planes);
  uint8_t* set = unit + geometry.scales_at() + slot * geometry.scale_bytes() + width * row;
  for (int i = 0; i < geometry.scales; ++i, set += geometry.set_bytes()) std::memcpy(set, &group.scales[i], width);
  if constexpr (geometry.separate_min()) {
    for (int i = 0; i < geometry.scales; ++i, set += geometry.set_bytes()) std::memcpy(set, &group.mins[i], width);
  }
}

template <TileKind kind>
void WriteUnitScale(const Block& block, int row, uint8_t* unit) {
  constexpr TileGeometry geometry = Geometry(kind);
  uint8_t* scales = unit + geometry.unit_scale_at();
  if constexpr (geometry.unit_scale == UnitScale::kSingle) {
    std::memcpy(scales + 4 * row, &block.single, 4);
  } else {
    std::memcpy(scales + 2 * row, &block.half, 2);
    if constexpr (geometry.unit_scale == UnitScale::kWithMin) std::memcpy(scales + 32 + 2 * row, &block.min, 2);
  }
}

// Tiles [first, last) of a matrix; rows past its end and groups past its columns are zeros.
template <class Format>
void PackTiles(const uint8_t* blocks, Codebook codebook, int64_t rows, int64_t columns, int64_t first, int64_t last,
               uint8_t* tiles) {
  constexpr TileGeometry geometry = Geometry(Format::kKind);
  static_assert(geometry.unit_scale == UnitScale::kNone || geometry.groups == Format::kGroups);
  const int64_t tile_bytes = geometry.tile_bytes(columns);
  const int64_t row_blocks = columns / (kGroup * Format::kGroups);
  for (int64_t tile = first; tile < last; ++tile) {
    uint8_t* out = tiles + tile * tile_bytes;
    std::memset(out, 0, static_cast<size_t>(tile_bytes));
    for (int row = 0; row < kTileRows && tile * kTileRows + row < rows; ++row) {
      const uint8_t* bytes = blocks + (tile * kTileRows + row) * row_blocks * Format::kBytes;
      for (int64_t b = 0; b < row_blocks; ++b, bytes += Format::kBytes) {
        Block block = {};
        Format::Read(bytes, codebook, &block);
        for (int j = 0; j < Format::kGroups; ++j) {
          const int64_t g = b * Format::kGroups + j;
          uint8_t* unit = out + g / geometry.groups * geometry.unit_bytes();
          WriteGroup<Format::kKind>(block.groups[j], static_cast<int>(g % geometry.groups), row, unit);
        }
        if constexpr (geometry.unit_scale != UnitScale::kNone) {
          WriteUnitScale<Format::kKind>(block, row, out + b * geometry.unit_bytes());
        }
      }
    }
  }
}

// The same for weights of `bytes` bytes that are moved as they are.
template <TileKind kind, int bytes>
void PackPlain(const uint8_t* weights, Codebook, int64_t rows, int64_t columns, int64_t first, int64_t last,
               uint8_t* tiles) {
  const int64_t tile_bytes = Geometry(kind).tile_bytes(columns);
  for (int64_t tile = first; tile < last; ++tile) {
    uint8_t* out = tiles + tile * tile_bytes;
    std::memset(out, 0, static_cast<size_t>(tile_bytes));
    const uint8_t* own = weights + tile * kTileRows * columns * bytes;
    const int64_t count = rows - tile * kTileRows < kTileRows ? rows - tile * kTileRows : kTileRows;
    for (int64_t i = 0; i < columns; ++i, own += bytes, out += kTileRows * bytes) {
      for (int64_t row = 0; row < count; ++row) std::memcpy(out + row * bytes, own + row * columns * bytes, bytes);
    }
  }
}

struct Packer {
  void (*pack)(const uint8_t*, Codebook, int64_t, int64_t, int64_t, int64_t, uint8_t*);
  int64_t block_columns;
  int64_t block_bytes;
};

template <class... Format>
struct Packers {
  static constexpr Packer all[] = {{PackTiles<Format>, kGroup * Format::kGroups, Format::kBytes}...,
                                   {PackPlain<TileKind::kFloat32, 4>, 1, 4},
                                   {PackPlain<TileKind::kFloat16, 2>, 1, 2},
                                   {PackPlain<TileKind::kBfloat16, 2>, 1, 2}};
};

// In the order of the formats in tiles.py.
constexpr auto& kPackers =
    Packers<Q1_0, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, TQ1_0, TQ2_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K, IQ4_NL, IQ4_XS,
            MXFP4, NVFP4, IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S>::all;

}  // namespace
}  // namespace realm

// Bytes of the blocks of a row, or 0 where whole blocks do not make so many columns.
REALM_EXPORT int64_t realm_row_bytes(int32_t format, int64_t columns) {
  const realm::Packer& packer = realm::kPackers[format];
  return columns % packer.block_columns == 0 ? columns / packer.block_columns * packer.block_bytes : 0;
}

// Packs tiles [first, last) of `rows` x `columns` weights. `codebook` says which levels each index of a codebook stands
// for; formats without one do not read it. Calls for separate ranges may run at the same time.
REALM_EXPORT void realm_pack_tiles(int32_t format, const uint8_t* blocks, const uint8_t* codebook, int64_t rows,
                                   int64_t columns, int64_t first, int64_t last, uint8_t* tiles) {
  realm::kPackers[format].pack(blocks, codebook, rows, columns, first, last, tiles);
}
