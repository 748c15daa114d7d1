// GGML's block formats by their definition, one weight at a time, and random matrices in them.
#ifndef TESTS_CPU_KERNELS_NATIVE_FORMATS_H_
#define TESTS_CPU_KERNELS_NATIVE_FORMATS_H_

#include <cstdint>
#include <vector>

#include "check.h"
#include "tiles.h"

namespace realm::test {

// A weight is scaled + min.
struct Weight {
  double scaled;
  double min;
};

struct BlockFormat {
  const char* name;
  int32_t packer;  // its place among those of pack.cc
  TileKind kind;   // of its tiles
  int columns;
  int bytes;
  std::vector<int> halves;  // where a block has float16 scales
  Weight (*weight)(const uint8_t* block, int column);
};

// The formats of the common mixes, and of those with a table one whose scales are halves and one with bytes.
const std::vector<BlockFormat>& BlockFormats();

// A matrix of random blocks, whose scales are those of weights, and its tiles.
struct BlockMatrix {
  const BlockFormat* format;
  int64_t rows;
  int64_t columns;
  std::vector<uint8_t> blocks;
  std::vector<uint8_t> tiles;

  Weight At(int64_t row, int64_t column) const;
};
BlockMatrix RandomMatrix(const BlockFormat& format, int64_t rows, int64_t blocks, Random& random);

}  // namespace realm::test

// What Python calls in the library.
extern "C" int64_t realm_row_bytes(int32_t format, int64_t columns);
extern "C" void realm_pack_tiles(int32_t format, const uint8_t* blocks, const uint8_t* codebook, int64_t rows,
                                 int64_t columns, int64_t first, int64_t last, uint8_t* tiles);

#endif  // TESTS_CPU_KERNELS_NATIVE_FORMATS_H_
