// The FFI handlers of project and gated_mlp: what stands between two attentions or around one, in a single call.
#include <cstdint>
#include <cstring>
#include <string>

#include "export.h"
#include "float_environment.h"
#include "operands.h"
#include "profile.h"
#include "run_projection.h"
#include "scratch.h"
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

void RunTimed(const Projection& projection, int helpers, ffi::ThreadPool& pool) {
  const CallTimer timer(projection.gate != Gate::kNone   ? Handler::kProjectGated
                        : projection.residual != nullptr ? Handler::kProjectAdd
                                                         : Handler::kProject);
  RunProjection(projection, helpers, pool);
}

namespace {

using Floats = ffi::Buffer<ffi::F32>;

ffi::Error Refuse(const char* rule) { return ffi::Error::InvalidArgument(std::string("project: ") + rule); }

// Operands: x[count, columns], its norm, the matrices, the residual, the norm before it is added. Results: y[count,
// rows] of each matrix, or of the first one alone. Settings: instruction set, threads, whether activations have a scale
// for 16 columns, the norm, the gate, the number of matrices, the matrices, whether there is a residual, its scale, the
// norm before it is added.
ffi::Error Project(ffi::ThreadPool pool, Floats x, ffi::RemainingArgs rest, ffi::RemainingRets results,
                   ffi::Span<const int64_t> numbers) {
  Settings settings(numbers);
  Operands operands(rest);
  const auto set = static_cast<InstructionSet>(settings.Int());
  const int64_t threads = settings.Int();
  Projection projection{};
  projection.kernels = FindKernels(set);
  if (projection.kernels == nullptr && set != InstructionSet::kNull)
    return Refuse("this CPU lacks the instruction set");
  projection.x = x.typed_data();
  projection.count = x.dimensions()[0];
  projection.columns = x.dimensions()[1];
  projection.halves = settings.Int() != 0;
  projection.norm = TakeNorm(settings, operands, projection.columns, &projection.norm_eps);
  projection.gate = static_cast<Gate>(settings.Int());
  const int64_t matrices = settings.Int();
  if (matrices < 1 || matrices > Projection::kMostMatrices || (projection.gate != Gate::kNone && matrices != 2)) {
    return Refuse("no such number of matrices");
  }
  projection.matrix_count = static_cast<int>(matrices);
  for (size_t i = 0; i < static_cast<size_t>(matrices); ++i) {
    Matrix& matrix = projection.matrices[i];
    matrix = TakeMatrix(settings, operands, projection.columns);
    if (i >= results.size()) continue;
    auto y = results.get<Floats>(i);
    if (!y.has_value() || static_cast<int64_t>((*y)->element_count()) != projection.count * matrix.rows) {
      return Refuse("a result has not the shape of its product");
    }
    matrix.y = (*y)->typed_data();
    if (set == InstructionSet::kNull) std::memset(matrix.y, 0, (*y)->size_bytes());
  }
  const int64_t rows = projection.matrices[0].rows;
  projection.residual = settings.Int() != 0 ? operands.Floats(projection.count * rows) : nullptr;
  projection.residual_scale = settings.Float();
  projection.post_norm = TakeNorm(settings, operands, rows, &projection.post_norm_eps);
  if (!operands.complete() || !settings.complete() ||
      (projection.gate != Gate::kNone && rows != projection.matrices[1].rows)) {
    return Refuse("the operands are not those of matrices of these shapes");
  }
  if (projection.count == 0 || set == InstructionSet::kNull) return ffi::Error::Success();
  const FloatEnvironment environment;
  RunTimed(projection, Helpers(threads, pool), pool);
  return ffi::Error::Success();
}

// y = x + scale * post_norm(down(gate(norm(x)) * up(norm(x)))), with what is between the matrices in `hidden[count,
// rows of the gate]`. Operands: x[count, columns], its norm, gate, up, down, the post norm. Settings: instruction set,
// threads, the norm, the gate's function, gate and up, down, the scale, the post norm.
ffi::Error GatedMlp(ffi::ThreadPool pool, Floats x, ffi::RemainingArgs rest, ffi::Result<Floats> y,
                    ffi::Result<Floats> hidden, ffi::Span<const int64_t> numbers) {
  Settings settings(numbers);
  Operands operands(rest);
  const auto set = static_cast<InstructionSet>(settings.Int());
  const int64_t threads = settings.Int();
  Projection in{};
  in.kernels = FindKernels(set);
  if (in.kernels == nullptr && set != InstructionSet::kNull) return Refuse("this CPU lacks the instruction set");
  in.x = x.typed_data();
  in.count = x.dimensions()[0];
  in.columns = x.dimensions()[1];
  in.norm = TakeNorm(settings, operands, in.columns, &in.norm_eps);
  in.gate = static_cast<Gate>(settings.Int());
  in.matrix_count = 2;
  for (int i = 0; i < 2; ++i) in.matrices[i] = TakeMatrix(settings, operands, in.columns);
  in.matrices[0].y = hidden->typed_data();
  Projection out{};
  out.kernels = in.kernels;
  out.x = hidden->typed_data();
  out.count = in.count;
  out.columns = in.matrices[0].rows;
  out.matrix_count = 1;
  out.matrices[0] = TakeMatrix(settings, operands, out.columns);
  out.matrices[0].y = y->typed_data();
  out.residual = in.x;
  out.residual_scale = settings.Float();
  out.post_norm = TakeNorm(settings, operands, in.columns, &out.post_norm_eps);
  if (!operands.complete() || !settings.complete() || in.gate == Gate::kNone || in.matrices[1].rows != out.columns ||
      out.matrices[0].rows != in.columns || y->element_count() != x.element_count() ||
      static_cast<int64_t>(hidden->element_count()) != in.count * out.columns) {
    return Refuse("the operands are not those of matrices of these shapes");
  }
  if (set == InstructionSet::kNull) std::memset(y->typed_data(), 0, y->size_bytes());
  if (in.count == 0 || set == InstructionSet::kNull) return ffi::Error::Success();
  const FloatEnvironment environment;
  RunTimed(in, Helpers(threads, pool), pool);
  RunTimed(out, Helpers(threads, pool), pool);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace realm

REALM_EXPORT_HANDLER(realm_project);
XLA_FFI_DEFINE_HANDLER_SYMBOL(realm_project, realm::Project,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<realm::Floats>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<ffi::Span<const int64_t>>("settings"));

REALM_EXPORT_HANDLER(realm_gated_mlp);
XLA_FFI_DEFINE_HANDLER_SYMBOL(realm_gated_mlp, realm::GatedMlp,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<realm::Floats>()
                                  .RemainingArgs()
                                  .Ret<realm::Floats>()  // y
                                  .Ret<realm::Floats>()  // hidden
                                  .Attr<ffi::Span<const int64_t>>("settings"));
