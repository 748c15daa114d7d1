// Products of activations with packed matrices and what stands around them in a layer, cut into chunks.
#ifndef CPU_KERNELS_PROJECTION_H_
#define CPU_KERNELS_PROJECTION_H_

#include <cstdint>

#include "kernels.h"

namespace realm {

// One packed matrix [rows, columns] and where its product goes: y[count, rows]. `bias` may be null.
struct Matrix {
  TileKind kind;
  int64_t rows;
  const uint8_t* tiles;
  const float* bias;
  float* y;
};

// x[count, columns], RMS-normalised where `norm` is not null, times the transpose of each matrix, plus its bias. Then
//
//     gate != kNone:      matrices[0].y = gate(product 0) * product 1
//     residual not null:  y = residual + residual_scale * product, which is RMS-normalised before where `post_norm` is
//                         not null
struct Projection {
  static constexpr int kMostMatrices = 4;

  const Kernels* kernels;
  const float* x;
  const int32_t* x_rows;  // which rows of x are multiplied; null: the first `count`
  int64_t count;
  int64_t columns;
  const float* norm;
  float norm_eps;
  bool halves;  // activations have a scale for 16 columns instead of 32
  Matrix matrices[kMostMatrices];
  int matrix_count;
  Gate gate;
  GateOptions gate_options;
  const float* residual;
  float residual_scale;
  const float* post_norm;
  float post_norm_eps;
};

// A projection in three phases, each of independent chunks: quantising the activations, multiplying, and adding
// normalised rows to the residual, which most projections do not have.
class ProjectionChunks {
 public:
  // `memory` has ScratchBytes(projection) bytes and lives as long as this. A phase has at most `most_chunks` >= 16.
  ProjectionChunks(const Projection& projection, uint8_t* memory, uint32_t most_chunks);

  static size_t ScratchBytes(const Projection& projection);

  uint32_t quantize_chunks() const;
  void Quantize(uint32_t chunk) const;

  uint32_t multiply_chunks() const { return first_chunk_[parts_]; }
  void Multiply(uint32_t taken) const;

  uint32_t add_chunks() const;
  void Add(uint32_t chunk) const;

 private:
  RowBlock Block(int64_t index) const;
  int PartOf(uint32_t chunk) const;
  void MultiplyTile(int part, int64_t tile, int64_t block) const;
  float* Products(const Matrix& matrix) const;
  void Store(const Matrix& matrix, int64_t at, TileProducts tile) const;

  const Projection& projection_;
  uint8_t* memory_;
  uint32_t most_chunks_;
  RowBlock::Parts row_parts_;
  int64_t groups_;
  int64_t block_rows_;  // rows of x in a block
  int64_t blocks_;
  int64_t block_bytes_;
  // A part is a matrix, or both of a gated pair. Its chunks are ranges of tiles times ranges of blocks of rows.
  int parts_;
  int64_t chunk_tiles_[Projection::kMostMatrices];
  int64_t chunk_blocks_;
  int64_t block_ranges_;
  uint32_t first_chunk_[Projection::kMostMatrices + 1] = {};
};

}  // namespace realm

#endif  // CPU_KERNELS_PROJECTION_H_
