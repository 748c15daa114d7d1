// How rows are cut into pieces, and how what they hold is put together again.
#include "argmax_chunks.h"

#include <algorithm>

#include "team.h"

namespace realm {
namespace {

constexpr int64_t kPiece = 16384;  // floats: a microsecond or two, many times what taking a chunk costs

int64_t PiecesOfRow(int64_t columns) { return (columns + kPiece - 1) / kPiece; }

bool IsNaN(float value) { return value != value; }

}  // namespace

ArgmaxChunks::ArgmaxChunks(const Kernels& kernels, const float* x, int64_t rows, int64_t columns, Largest* partials)
    : kernels_(kernels), x_(x), rows_(rows), columns_(columns), partials_(partials) {}

int64_t ArgmaxChunks::Pieces(int64_t rows, int64_t columns) { return rows * PiecesOfRow(columns); }

uint32_t ArgmaxChunks::chunks() const {
  return static_cast<uint32_t>(std::min<int64_t>(Pieces(rows_, columns_), Team::kMostChunks));
}

void ArgmaxChunks::Find(uint32_t chunk) const {
  const int64_t in_row = PiecesOfRow(columns_);
  for (int64_t piece = chunk; piece < Pieces(rows_, columns_); piece += chunks()) {
    const int64_t first = piece % in_row * kPiece;
    Largest found = kernels_.largest(x_ + piece / in_row * columns_ + first, std::min(kPiece, columns_ - first));
    found.index += first;
    partials_[piece] = found;
  }
}

void ArgmaxChunks::Merge(int32_t* out) const {
  const int64_t in_row = PiecesOfRow(columns_);
  for (int64_t row = 0; row < rows_; ++row) {
    Largest best = partials_[row * in_row];
    for (int64_t piece = 1; piece < in_row && !IsNaN(best.value); ++piece) {
      const Largest& next = partials_[row * in_row + piece];
      if (next.value > best.value || IsNaN(next.value)) best = next;
    }
    out[row] = static_cast<int32_t>(best.index);
  }
}

}  // namespace realm
