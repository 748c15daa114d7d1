// The product of activations with one packed matrix, cut into chunks.
#ifndef CPU_KERNELS_PRODUCT_H_
#define CPU_KERNELS_PRODUCT_H_

#include <cstdint>

#include "kernels.h"

namespace realm {

// y[count, rows] = x[count, columns] times the transpose of the packed matrix.
struct Product {
  const Kernels* kernels;
  TileKind kind;
  int64_t rows;
  int64_t columns;
  int64_t count;
  const float* x;
  const uint8_t* tiles;
  float* y;
};

// The product in two phases, each of independent chunks: quantising the activations, then multiplying.
class ProductChunks {
 public:
  // `memory` has ScratchBytes(product) bytes and lives as long as this.
  ProductChunks(const Product& product, uint8_t* memory);

  static size_t ScratchBytes(const Product& product);

  uint32_t quantize_chunks() const;
  void Quantize(uint32_t chunk) const;

  uint32_t multiply_chunks() const;
  void Multiply(uint32_t chunk) const;

 private:
  RowBlock Block(int64_t index) const;
  void MultiplyBlock(const uint8_t* tile, int64_t tile_index, int64_t block_index) const;

  const Product& product_;
  uint8_t* memory_;
  int64_t groups_;
  int64_t tile_bytes_;
  int64_t tiles_;
  int64_t blocks_;
  int64_t chunk_tiles_;
};

}  // namespace realm

#endif  // CPU_KERNELS_PRODUCT_H_
