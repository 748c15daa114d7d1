// The place of the largest value of each row of a matrix, cut into chunks.
#ifndef CPU_KERNELS_ARGMAX_CHUNKS_H_
#define CPU_KERNELS_ARGMAX_CHUNKS_H_

#include <cstdint>

#include "kernels.h"

namespace realm {

// x[rows, columns], columns > 0. A chunk looks at pieces of rows, and the results of a row's pieces are merged in
// order: the first among equals wins, and the first NaN over all numbers.
class ArgmaxChunks {
 public:
  // `partials` has room for Pieces(rows, columns) results and lives as long as this.
  ArgmaxChunks(const Kernels& kernels, const float* x, int64_t rows, int64_t columns, Largest* partials);

  static int64_t Pieces(int64_t rows, int64_t columns);

  uint32_t chunks() const;
  void Find(uint32_t chunk) const;
  void Merge(int32_t* out) const;

 private:
  const Kernels& kernels_;
  const float* x_;
  int64_t rows_;
  int64_t columns_;
  Largest* partials_;
};

}  // namespace realm

#endif  // CPU_KERNELS_ARGMAX_CHUNKS_H_
