// The FFI handler of mix_experts.
#include <cstdint>
#include <cstring>

#include "export.h"
#include "float_environment.h"
#include "mixture.h"
#include "profile.h"
#include "scratch.h"
#include "thread_pool.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace realm {
namespace {

using Tiles = ffi::Buffer<ffi::U8>;
using Floats = ffi::Buffer<ffi::F32>;

void RunMixture(const Mixture& mixture, int helpers, ffi::ThreadPool& pool) {
  static thread_local Scratch scratch;
  const Routes routes(mixture);
  MixtureChunks chunks(mixture, routes);
  chunks.Use(scratch.AtLeast(chunks.ScratchBytes()));
  for (int phase = 0; phase < MixtureChunks::kPhases; ++phase) {
    ForEachChunk(chunks.chunks(phase), helpers, pool, [&](uint32_t i) { chunks.Run(phase, i); });
  }
}

// The matrices of all experts, where the operands have their shapes: a bias of no elements stands for none.
bool Take(const Tiles& tiles, const Floats& bias, int64_t kind, int64_t rows, int64_t columns, int64_t experts,
          ExpertMatrices* out) {
  *out = {static_cast<TileKind>(kind), rows, tiles.typed_data(), nullptr};
  if (bias.element_count() != 0) {
    if (static_cast<int64_t>(bias.element_count()) != experts * rows) return false;
    out->bias = bias.typed_data();
  }
  const auto shape = tiles.dimensions();
  return shape.size() == 3 && shape[0] == experts && shape[1] == (rows + kTileRows - 1) / kTileRows &&
         shape[2] == Geometry(out->kind).tile_bytes(columns);
}

// x[count, columns], the norm[columns] or [0], weights[count, experts], then gate, up and down: tiles[experts, tiles,
// bytes] and a bias of [experts, rows] or [0]. `kinds` are those of the three, `rows` those of gate and down.
ffi::Error MixExperts(ffi::ThreadPool pool, Floats x, Floats norm, Floats weights, Tiles gate, Floats gate_bias,
                      Tiles up, Floats up_bias, Tiles down, Floats down_bias, ffi::Result<Floats> y, float norm_eps,
                      ffi::Span<const int64_t> kinds, ffi::Span<const int64_t> rows, int64_t activation, float alpha,
                      float limit, int64_t instruction_set, int64_t threads) {
  const auto set = static_cast<InstructionSet>(instruction_set);
  const Kernels* kernels = FindKernels(set);
  if (kernels == nullptr && set != InstructionSet::kNull) {
    return ffi::Error::InvalidArgument("mix_experts: this CPU lacks the instruction set");
  }
  Mixture mixture{};
  mixture.kernels = kernels;
  mixture.x = x.typed_data();
  mixture.count = x.dimensions()[0];
  mixture.columns = x.dimensions()[1];
  mixture.norm = norm.element_count() == 0 ? nullptr : norm.typed_data();
  mixture.norm_eps = norm_eps;
  mixture.weights = weights.typed_data();
  mixture.experts = weights.dimensions()[1];
  mixture.activation = static_cast<Gate>(activation);
  mixture.options = {alpha, limit};
  mixture.y = y->typed_data();
  const int64_t count = mixture.count, experts = mixture.experts;
  if (kinds.size() != 3 || rows.size() != 2 || experts > Choice::kMostExperts || weights.dimensions()[0] != count ||
      (mixture.norm != nullptr && static_cast<int64_t>(norm.element_count()) != mixture.columns) ||
      static_cast<int64_t>(y->element_count()) != count * rows[1] ||
      !Take(gate, gate_bias, kinds[0], rows[0], mixture.columns, experts, &mixture.gate) ||
      !Take(up, up_bias, kinds[1], rows[0], mixture.columns, experts, &mixture.up) ||
      !Take(down, down_bias, kinds[2], rows[1], rows[0], experts, &mixture.down)) {
    return ffi::Error::InvalidArgument("mix_experts: the operands are not those of experts of these shapes");
  }
  if (set == InstructionSet::kNull) std::memset(y->typed_data(), 0, y->size_bytes());
  if (set == InstructionSet::kNull || count == 0) return ffi::Error::Success();
  const CallTimer timer(Handler::kMixExperts);
  const FloatEnvironment environment;
  RunMixture(mixture, Helpers(threads, pool), pool);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace realm

REALM_EXPORT_HANDLER(realm_mix_experts);
XLA_FFI_DEFINE_HANDLER_SYMBOL(realm_mix_experts, realm::MixExperts,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("norm_eps")
                                  .Attr<ffi::Span<const int64_t>>("kinds")
                                  .Attr<ffi::Span<const int64_t>>("rows")
                                  .Attr<int64_t>("activation")
                                  .Attr<float>("alpha")
                                  .Attr<float>("limit")
                                  .Attr<int64_t>("instruction_set")
                                  .Attr<int64_t>("threads"));
