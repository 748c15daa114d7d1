// The FFI handler of quantized_matmul.
#include <cstdint>
#include <cstring>

#include "export.h"
#include "float_environment.h"
#include "profile.h"
#include "run_projection.h"
#include "thread_pool.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace realm {
namespace {

// The axes that vmap put in front: x[batch..., ..., columns], tiles[batch..., tiles, bytes], y[batch..., ..., rows]. An
// axis of x or tiles may be 1 where y's is not.
struct Batch {
  ffi::Span<const int64_t> x, tiles, y;
  size_t axes;

  bool one_matrix() const {
    for (size_t i = 0; i < axes; ++i) {
      if (tiles[i] != 1) return false;
    }
    return true;
  }
  int64_t size() const {
    int64_t product = 1;
    for (size_t i = 0; i < axes; ++i) product *= y[i];
    return product;
  }
  // Which of the arrays along x's (or tiles') batch axes belongs to the index-th of y's.
  int64_t Source(ffi::Span<const int64_t> dimensions, int64_t index) const {
    int64_t source = 0;
    int64_t stride = 1;
    for (size_t i = axes; i-- > 0;) {
      source += dimensions[i] == 1 ? 0 : index % y[i] * stride;
      stride *= dimensions[i];
      index /= y[i];
    }
    return source;
  }
};

ffi::Error QuantizedMatmul(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::U8> tiles,
                           ffi::Result<ffi::Buffer<ffi::F32>> y, int64_t kind, int64_t rows, int64_t instruction_set,
                           int64_t threads) {
  const auto set = static_cast<InstructionSet>(instruction_set);
  const Kernels* kernels = FindKernels(set);
  if (kernels == nullptr && set != InstructionSet::kNull) {
    return ffi::Error::InvalidArgument("quantized_matmul: this CPU lacks the instruction set");
  }
  const Batch batch{x.dimensions(), tiles.dimensions(), y->dimensions(), tiles.dimensions().size() - 2};
  Projection product{};
  product.kernels = kernels;
  product.columns = x.dimensions().back();
  product.matrix_count = 1;
  Matrix& matrix = product.matrices[0];
  matrix.kind = static_cast<TileKind>(kind);
  matrix.rows = rows;
  const int64_t tile_count = tiles.dimensions()[batch.axes];
  const int64_t tile_bytes = tiles.dimensions().back();
  if (tile_bytes != Geometry(matrix.kind).tile_bytes(product.columns) ||
      tile_count != (rows + kTileRows - 1) / kTileRows) {
    return ffi::Error::InvalidArgument("quantized_matmul: the tiles are not those of a matrix of this shape");
  }
  const int64_t size = batch.size();
  if (set == InstructionSet::kNull) std::memset(y->typed_data(), 0, y->size_bytes());
  if (set == InstructionSet::kNull || y->element_count() == 0) return ffi::Error::Success();
  const int helpers = Helpers(threads, pool);
  const CallTimer timer(Handler::kQuantizedMatmul);
  const FloatEnvironment environment;
  product.x = x.typed_data();
  matrix.tiles = tiles.typed_data();
  matrix.y = y->typed_data();
  if (batch.one_matrix()) {
    product.count = static_cast<int64_t>(y->element_count()) / rows;
    RunProjection(product, helpers, pool);
    return ffi::Error::Success();
  }
  product.count = static_cast<int64_t>(y->element_count()) / rows / size;
  for (int64_t i = 0; i < size; ++i) {
    product.x = x.typed_data() + batch.Source(batch.x, i) * product.count * product.columns;
    matrix.tiles = tiles.typed_data() + batch.Source(batch.tiles, i) * tile_count * tile_bytes;
    matrix.y = y->typed_data() + i * product.count * rows;
    RunProjection(product, helpers, pool);
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace realm

REALM_EXPORT_HANDLER(realm_quantized_matmul);
XLA_FFI_DEFINE_HANDLER_SYMBOL(realm_quantized_matmul, realm::QuantizedMatmul,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("kind")
                                  .Attr<int64_t>("rows")
                                  .Attr<int64_t>("instruction_set")
                                  .Attr<int64_t>("threads"));
