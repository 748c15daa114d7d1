// The FFI handler of project: what stands between two attentions or around one, in a single call.
#include <cstdint>
#include <cstring>

#include "export.h"
#include "float_environment.h"
#include "profile.h"
#include "run_projection.h"
#include "scratch.h"
#include "settings.h"
#include "thread_pool.h"

namespace ffi = xla::ffi;

namespace realm {

void RunProjection(const Projection& projection, int helpers, ffi::ThreadPool& pool) {
  static thread_local Scratch scratch;
  uint8_t* memory = scratch.AtLeast(ProjectionChunks::ScratchBytes(projection));
  const ProjectionChunks chunks(projection, memory, Team::kMostChunks);
  ForEachChunk(chunks.quantize_chunks(), helpers, pool, [&](uint32_t i) { chunks.Quantize(i); });
  ForEachChunk(chunks.multiply_chunks(), helpers, pool, [&](uint32_t i) { chunks.Multiply(i); });
  ForEachChunk(chunks.add_chunks(), helpers, pool, [&](uint32_t i) { chunks.Add(i); });
}

namespace {

// Takes the operands of a call one after the other and checks their shapes.
class Operands {
 public:
  explicit Operands(ffi::RemainingArgs arguments) : arguments_(arguments) {}

  bool complete() const { return !failed_ && next_ == arguments_.size(); }

  const float* Floats(int64_t count) {
    const auto buffer = arguments_.get<ffi::Buffer<ffi::F32>>(next_++);
    return Checked(buffer.has_value() && static_cast<int64_t>(buffer->element_count()) == count,
                   buffer.has_value() ? buffer->typed_data() : nullptr);
  }
  const uint8_t* Tiles(TileKind kind, int64_t rows, int64_t columns) {
    const auto buffer = arguments_.get<ffi::Buffer<ffi::U8>>(next_++);
    const bool fits = buffer.has_value() && buffer->dimensions().size() == 2 &&
                      buffer->dimensions()[0] == (rows + kTileRows - 1) / kTileRows &&
                      buffer->dimensions()[1] == Geometry(kind).tile_bytes(columns);
    return Checked(fits, buffer.has_value() ? buffer->typed_data() : nullptr);
  }

 private:
  template <class T>
  const T* Checked(bool fits, const T* data) {
    failed_ |= !fits;
    return fits ? data : nullptr;
  }

  ffi::RemainingArgs arguments_;
  size_t next_ = 0;
  bool failed_ = false;
};

// What the setting `parts` says beside the matrices.
enum Part : int64_t { kNorm = 1, kResidual = 2, kPostNorm = 4, kHalves = 8 };

// Operands: x[count, columns], then the norm; each matrix's tiles and, where `biased` has its bit, its bias; the
// residual; the norm before it is added. Results: y[count, rows] of each matrix, or of the first one alone. Settings:
// instruction set, threads, biased, parts, gate, the norms' epsilons, the residual's scale, the number of matrices, and
// of each its kind and rows.
ffi::Error Project(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::RemainingArgs rest, ffi::RemainingRets results,
                   ffi::Span<const int64_t> numbers) {
  Settings settings(numbers);
  const auto set = static_cast<InstructionSet>(settings.Int());
  const int64_t threads = settings.Int();
  const int64_t biased = settings.Int();
  const int64_t parts = settings.Int();
  const auto gate = static_cast<Gate>(settings.Int());
  const float norm_eps = settings.Float();
  const float post_norm_eps = settings.Float();
  const float residual_scale = settings.Float();
  const int64_t matrices = settings.Int();
  const Kernels* kernels = FindKernels(set);
  if (kernels == nullptr && set != InstructionSet::kNull) {
    return ffi::Error::InvalidArgument("project: this CPU lacks the instruction set");
  }
  if (matrices < 1 || matrices > Projection::kMostMatrices || (gate != Gate::kNone && matrices != 2)) {
    return ffi::Error::InvalidArgument("project: no such number of matrices");
  }
  Operands operands(rest);
  Projection projection{};
  projection.kernels = kernels;
  projection.x = x.typed_data();
  projection.count = x.dimensions()[0];
  projection.columns = x.dimensions()[1];
  projection.norm = parts & kNorm ? operands.Floats(projection.columns) : nullptr;
  projection.norm_eps = norm_eps;
  projection.halves = (parts & kHalves) != 0;
  projection.matrix_count = static_cast<int>(matrices);
  projection.gate = gate;
  for (size_t i = 0; i < static_cast<size_t>(matrices); ++i) {
    Matrix& matrix = projection.matrices[i];
    matrix.kind = static_cast<TileKind>(settings.Int());
    matrix.rows = settings.Int();
    matrix.tiles = operands.Tiles(matrix.kind, matrix.rows, projection.columns);
    matrix.bias = biased >> i & 1 ? operands.Floats(matrix.rows) : nullptr;
    if (i >= results.size()) continue;
    auto y = results.get<ffi::Buffer<ffi::F32>>(i);
    if (!y.has_value() || static_cast<int64_t>((*y)->element_count()) != projection.count * matrix.rows) {
      return ffi::Error::InvalidArgument("project: a result has not the shape of its product");
    }
    matrix.y = (*y)->typed_data();
    if (set == InstructionSet::kNull) std::memset(matrix.y, 0, (*y)->size_bytes());
  }
  const int64_t rows = projection.matrices[0].rows;
  projection.residual = parts & kResidual ? operands.Floats(projection.count * rows) : nullptr;
  projection.residual_scale = residual_scale;
  projection.post_norm = parts & kPostNorm ? operands.Floats(rows) : nullptr;
  projection.post_norm_eps = post_norm_eps;
  if (!operands.complete() || !settings.complete() || (gate != Gate::kNone && rows != projection.matrices[1].rows)) {
    return ffi::Error::InvalidArgument("project: the operands are not those of matrices of these shapes");
  }
  if (projection.count == 0 || set == InstructionSet::kNull) return ffi::Error::Success();
  const CallTimer timer(gate != Gate::kNone              ? Handler::kProjectGated
                        : projection.residual != nullptr ? Handler::kProjectAdd
                                                         : Handler::kProject);
  const FloatEnvironment environment;
  RunProjection(projection, Helpers(threads, pool), pool);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace realm

REALM_EXPORT_HANDLER(realm_project);
XLA_FFI_DEFINE_HANDLER_SYMBOL(realm_project, realm::Project,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<ffi::Span<const int64_t>>("settings"));
