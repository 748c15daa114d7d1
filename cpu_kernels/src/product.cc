// How a product is cut into chunks, and what a chunk does.
#include "product.h"

#include <algorithm>
#include <cstring>

#include "team.h"

namespace realm {
namespace {

// Work of a chunk, in bytes of weights times blocks of rows: a few microseconds, so that the members of a team end
// together, and some dozen times what taking a chunk costs.
constexpr int64_t kChunkBytes = 32 * 1024;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The index in Kernels::multiply of the lowest kernel that holds so many rows.
int HeightIndex(int64_t rows) {
  int index = 0;
  while ((int64_t{1} << index) < rows) ++index;
  return index;
}

int64_t PaddedGroups(const Product& product) { return Geometry(product.kind).padded_groups(product.columns); }

}  // namespace

ProductChunks::ProductChunks(const Product& product, uint8_t* memory)
    : product_(product),
      memory_(memory),
      groups_(PaddedGroups(product)),
      tile_bytes_(Geometry(product.kind).tile_bytes(product.columns)),
      tiles_(CeilDiv(product.rows, kTileRows)),
      blocks_(CeilDiv(product.count, product.kernels->max_height)) {
  const int64_t wanted = kChunkBytes / std::max<int64_t>(1, tile_bytes_ * blocks_);
  const int64_t fewest = CeilDiv(tiles_, Team::kMostChunks);
  chunk_tiles_ = std::max<int64_t>({1, wanted, fewest});
}

size_t ProductChunks::ScratchBytes(const Product& product) {
  const int height = product.kernels->max_height;
  return CeilDiv(product.count, height) * RowBlock::Bytes(PaddedGroups(product), height);
}

RowBlock ProductChunks::Block(int64_t index) const {
  const int height = product_.kernels->max_height;
  const int64_t rows = std::min<int64_t>(height, product_.count - index * height);
  return RowBlock::At(memory_ + index * RowBlock::Bytes(groups_, height), groups_, 1 << HeightIndex(rows));
}

uint32_t ProductChunks::quantize_chunks() const {
  return static_cast<uint32_t>(std::min<int64_t>(blocks_, Team::kMostChunks));
}

void ProductChunks::Quantize(uint32_t chunk) const {
  for (int64_t index = chunk; index < blocks_; index += quantize_chunks()) {
    const RowBlock block = Block(index);
    const int64_t first = index * product_.kernels->max_height;
    for (int row = 0; row < block.height; ++row) {
      const bool inside = first + row < product_.count;
      const float* x = inside ? product_.x + (first + row) * product_.columns : nullptr;
      product_.kernels->quantize(x, inside ? product_.columns : 0, groups_, row, block);
    }
  }
}

uint32_t ProductChunks::multiply_chunks() const { return static_cast<uint32_t>(CeilDiv(tiles_, chunk_tiles_)); }

// Helpers take chunks from the back. The second half is numbered backwards, so that they too go up in memory and find
// what a kernel has prefetched beyond the end of its chunk.
void ProductChunks::Multiply(uint32_t chunk) const {
  const uint32_t half = multiply_chunks() / 2;
  const uint32_t place = chunk < half ? chunk : half + (multiply_chunks() - 1 - chunk);
  const int64_t first = place * chunk_tiles_;
  const int64_t last = std::min(tiles_, first + chunk_tiles_);
  for (int64_t tile = first; tile < last; ++tile) {
    for (int64_t block = 0; block < blocks_; ++block) {
      MultiplyBlock(product_.tiles + tile * tile_bytes_, tile, block);
    }
  }
}

void ProductChunks::MultiplyBlock(const uint8_t* tile, int64_t tile_index, int64_t block_index) const {
  const Kernels& kernels = *product_.kernels;
  const RowBlock block = Block(block_index);
  alignas(64) float results[16 * kTileRows];
  kernels.multiply[static_cast<int>(product_.kind)][HeightIndex(block.height)](tile, groups_, block, results);
  const int64_t first_row = block_index * kernels.max_height;
  const int64_t first_output = tile_index * kTileRows;
  const int64_t count = std::min<int64_t>(block.height, product_.count - first_row);
  const int64_t outputs = std::min<int64_t>(kTileRows, product_.rows - first_output);
  for (int64_t row = 0; row < count; ++row) {
    float* y = product_.y + (first_row + row) * product_.rows + first_output;
    std::memcpy(y, results + kTileRows * row, static_cast<size_t>(outputs) * sizeof(float));
  }
}

}  // namespace realm
