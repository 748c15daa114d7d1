// The operands of a call, whose number varies, taken one after the other; settings say which of them there are.
#ifndef CPU_KERNELS_OPERANDS_H_
#define CPU_KERNELS_OPERANDS_H_

#include <cstddef>
#include <cstdint>

#include "projection.h"
#include "settings.h"
#include "xla/ffi/api/ffi.h"

namespace realm {

// One that is missing, or has another type or size than it must, is null, and `complete` says so once all are taken.
class Operands {
 public:
  explicit Operands(xla::ffi::RemainingArgs arguments) : arguments_(arguments) {}

  bool complete() const { return !failed_ && next_ == arguments_.size(); }

  const float* Floats(int64_t count) { return Take<xla::ffi::F32, float>(count); }
  const int32_t* Indices(int64_t count) { return Take<xla::ffi::S32, int32_t>(count); }
  const uint8_t* Tiles(TileKind kind, int64_t rows, int64_t columns) {
    const auto buffer = arguments_.get<xla::ffi::Buffer<xla::ffi::U8>>(next_++);
    const bool fits = buffer.has_value() && buffer->dimensions().size() == 2 &&
                      buffer->dimensions()[0] == (rows + kTileRows - 1) / kTileRows &&
                      buffer->dimensions()[1] == Geometry(kind).tile_bytes(columns);
    failed_ |= !fits;
    return fits ? buffer->typed_data() : nullptr;
  }

 private:
  template <xla::ffi::DataType type, class T>
  const T* Take(int64_t count) {
    const auto buffer = arguments_.get<xla::ffi::Buffer<type>>(next_++);
    const bool fits = buffer.has_value() && static_cast<int64_t>(buffer->element_count()) == count;
    failed_ |= !fits;
    return fits ? buffer->typed_data() : nullptr;
  }

  xla::ffi::RemainingArgs arguments_;
  size_t next_ = 0;
  bool failed_ = false;
};

// Settings: the tiles' kind, rows, whether there is a bias. Operands: tiles, bias.
inline Matrix TakeMatrix(Settings& settings, Operands& operands, int64_t columns) {
  Matrix matrix{};
  matrix.kind = static_cast<TileKind>(settings.Int());
  matrix.rows = settings.Int();
  matrix.tiles = operands.Tiles(matrix.kind, matrix.rows, columns);
  if (settings.Int() != 0) matrix.bias = operands.Floats(matrix.rows);
  return matrix;
}

// Settings: whether there is a norm, its epsilon. Operand: what it multiplies by, or none.
inline const float* TakeNorm(Settings& settings, Operands& operands, int64_t size, float* eps) {
  const bool given = settings.Int() != 0;
  *eps = settings.Float();
  return given ? operands.Floats(size) : nullptr;
}

}  // namespace realm

#endif  // CPU_KERNELS_OPERANDS_H_
