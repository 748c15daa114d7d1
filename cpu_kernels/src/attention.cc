// The FFI handlers of paged_attention and of attention_block, which has the products around it.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "attention_plan.h"
#include "export.h"
#include "float_environment.h"
#include "kernels.h"
#include "operands.h"
#include "profile.h"
#include "run_projection.h"
#include "scratch.h"
#include "thread_pool.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace realm {
namespace {

using Floats = ffi::Buffer<ffi::F32>;
using Indices = ffi::Buffer<ffi::S32>;

// Calls item(i) once for each i < items, some of them in a chunk where there are more than a team can count.
template <class Item>
void ForEach(int64_t items, int helpers, ffi::ThreadPool& pool, const Item& item) {
  const int64_t size = (items + Team::kMostChunks - 1) / Team::kMostChunks;
  if (size == 0) return;
  ForEachChunk(static_cast<uint32_t>((items + size - 1) / size), helpers, pool, [&](uint32_t chunk) {
    for (int64_t i = chunk * size; i < std::min(items, (chunk + 1) * size); ++i) item(i);
  });
}

class Phases {
 public:
  Phases(const Attention& attention, const AttentionKernels& kernels) : attention_(attention), kernels_(kernels) {}

  void PrepareGroup(const TokenGroup& group) const {
    static thread_local Scratch scratch;
    const CacheGeometry& geometry = attention_.geometry;
    const int64_t floats = (geometry.kv_heads + 1) * geometry.channels;
    auto* memory = reinterpret_cast<float*>(scratch.AtLeast(static_cast<size_t>(floats) * sizeof(float)));
    for (int64_t i = 0; i < group.count; ++i) {
      kernels_.prepare[kind()](attention_, group.sequence, group.first + i, memory);
    }
  }

  // Where one chunk is all there is, its results are merged while they are at hand.
  void AttendUnit(const AttentionPlan& plan, const Slab& slab, int64_t index) const {
    const AttentionUnit unit = plan.UnitAt(slab, index);
    const TokenGroup& group = *unit.group;
    if (index + 1 < slab.units) {
      const AttentionUnit next = plan.UnitAt(slab, index + 1);
      kernels_.attend[kind()](attention_, unit, &next);
    } else {
      kernels_.attend[kind()](attention_, unit, nullptr);
    }
    const int64_t heads = attention_.heads / attention_.geometry.kv_heads;
    if (group.chunks == 1) Merge(plan, group, unit.kv_head * heads, (unit.kv_head + 1) * heads);
  }

  void MergeGroup(const AttentionPlan& plan, const TokenGroup& group) const {
    if (group.chunks != 1) Merge(plan, group, 0, attention_.heads);
  }

 private:
  int kind() const { return static_cast<int>(attention_.geometry.kind); }

  void Merge(const AttentionPlan& plan, const TokenGroup& group, int64_t first, int64_t last) const {
    for (int64_t i = 0; i < group.count; ++i) {
      kernels_.merge(attention_, group, plan.visible(group)[i], group.first + i, first, last);
    }
  }

  const Attention& attention_;
  const AttentionKernels& kernels_;
};

void Run(const Attention& attention, const AttentionKernels& kernels, int helpers, ffi::ThreadPool& pool) {
  const CallTimer timer(Handler::kPagedAttention);
  static thread_local Scratch scratch;
  AttentionPlan plan(attention);
  const Phases phases(attention, kernels);
  ForEach(static_cast<int64_t>(plan.group_count()), helpers, pool,
          [&](int64_t i) { phases.PrepareGroup(plan.group(static_cast<size_t>(i))); });
  for (size_t first = 0; first < plan.group_count();) {
    const Slab slab = plan.SlabFrom(first);
    plan.Place(slab, reinterpret_cast<float*>(scratch.AtLeast(static_cast<size_t>(slab.floats) * sizeof(float))));
    ForEach(slab.units, helpers, pool, [&](int64_t i) { phases.AttendUnit(plan, slab, PlaceOf(i, slab.units)); });
    ForEach(static_cast<int64_t>(slab.last - first), helpers, pool,
            [&](int64_t i) { phases.MergeGroup(plan, plan.group(first + static_cast<size_t>(i))); });
    first = slab.last;
  }
}

ffi::Error Refuse(const char* rule) { return ffi::Error::InvalidArgument(std::string("paged_attention: ") + rule); }

// Everything of a call but q, k, v and the result. Settings: kind of the cache, positions of a block, q's heads, k's,
// their channels, the pairs of them that are rotated, scale, window, softcap, style of rotation, norm, its epsilon,
// whether there are sinks. Operands: positions, starts of the sequences, their context lengths, cosines and sines where
// heads are rotated, norms of q and k where they are normalised, sinks.
Attention TakeAttention(Settings& settings, Operands& operands, ffi::AnyBuffer cache, Indices block_table,
                        int64_t tokens) {
  Attention attention{};
  AttentionOptions& options = attention.options;
  const auto kind = static_cast<CacheKind>(settings.Int());
  const int64_t block_size = std::max<int64_t>(1, settings.Int());
  attention.heads = settings.Int();
  const int64_t kv_heads = settings.Int();
  const int64_t head_dim = settings.Int();
  attention.geometry = MakeCacheGeometry(kind, block_size, kv_heads, head_dim);
  attention.rope_pairs = settings.Int();
  options.scale = settings.Float();
  options.window = settings.Int();
  options.softcap = settings.Float();
  options.rope_style = static_cast<RopeStyle>(settings.Int());
  options.norm = static_cast<QkNorm>(settings.Int());
  options.norm_eps = settings.Float();
  const bool sinks = settings.Int() != 0;
  attention.tokens = tokens;
  attention.sequences = block_table.dimensions()[0];
  attention.pages = block_table.dimensions()[1];
  attention.blocks = cache.dimensions()[0];
  attention.cache = static_cast<uint8_t*>(cache.untyped_data());
  attention.block_table = block_table.typed_data();
  attention.positions = operands.Indices(tokens);
  attention.query_start = operands.Indices(attention.sequences + 1);
  attention.context_lens = operands.Indices(attention.sequences);
  if (options.rope_style != RopeStyle::kNone) {
    attention.cos = operands.Floats(tokens * attention.rope_pairs);
    attention.sin = operands.Floats(tokens * attention.rope_pairs);
  }
  if (options.norm != QkNorm::kNone) {
    const bool full = options.norm == QkNorm::kFull;
    attention.q_norm = operands.Floats((full ? attention.heads : 1) * head_dim);
    attention.k_norm = operands.Floats((full ? kv_heads : 1) * head_dim);
  }
  if (sinks) attention.sinks = operands.Floats(attention.heads);
  return attention;
}

// The rule that the heads, the cache or the indices of a batch break, or null.
const char* WhatIsWrong(const Attention& attention, ffi::AnyBuffer cache, ffi::AnyBuffer new_cache) {
  const CacheGeometry& geometry = attention.geometry;
  if (geometry.kv_heads < 1 || attention.heads % geometry.kv_heads != 0 ||
      2 * attention.rope_pairs > geometry.head_dim) {
    return "the heads do not fit together";
  }
  if (static_cast<int64_t>(cache.size_bytes()) != attention.blocks * geometry.block_bytes) {
    return "the cache is not one of this kind, block size and shape of k";
  }
  if (cache.untyped_data() != new_cache.untyped_data()) return "the cache was copied instead of updated in place";
  return WhatIsWrong(attention);
}

// Attends for the tokens that belong to a sequence; the results of the others are zeros.
void Attend(const Attention& attention, const Kernels& kernels, int helpers, ffi::ThreadPool& pool) {
  const int64_t row = attention.heads * attention.geometry.head_dim;
  const int64_t owned = attention.query_start[attention.sequences];
  std::memset(attention.out + owned * row, 0, static_cast<size_t>((attention.tokens - owned) * row) * sizeof(float));
  Run(attention, kernels.attention, helpers, pool);
}

// Operands: the cache, the block table, those of TakeAttention, q, k and v of float[tokens, heads, channels]. Settings:
// instruction set, threads, those of TakeAttention.
ffi::Error PagedAttention(ffi::ThreadPool pool, ffi::AnyBuffer cache, Indices block_table, ffi::RemainingArgs rest,
                          ffi::Result<Floats> out, ffi::Result<ffi::AnyBuffer> new_cache,
                          ffi::Span<const int64_t> numbers) {
  Settings settings(numbers);
  Operands operands(rest);
  const auto set = static_cast<InstructionSet>(settings.Int());
  const int64_t threads = settings.Int();
  const Kernels* kernels = FindKernels(set);
  if (kernels == nullptr && set != InstructionSet::kNull) return Refuse("this CPU lacks the instruction set");
  const int64_t tokens = out->dimensions()[0];
  Attention attention = TakeAttention(settings, operands, cache, block_table, tokens);
  const int64_t size = attention.geometry.head_dim;
  attention.q = operands.Floats(tokens * attention.heads * size);
  attention.k = operands.Floats(tokens * attention.geometry.kv_heads * size);
  attention.v = operands.Floats(tokens * attention.geometry.kv_heads * size);
  attention.out = out->typed_data();
  if (!operands.complete() || !settings.complete() ||
      static_cast<int64_t>(out->element_count()) != tokens * attention.heads * size) {
    return Refuse("the shapes of the arrays do not fit together");
  }
  if (const char* rule = WhatIsWrong(attention, cache, *new_cache)) return Refuse(rule);
  if (set == InstructionSet::kNull) {
    std::memset(out->typed_data(), 0, out->size_bytes());
    return ffi::Error::Success();
  }
  const FloatEnvironment environment;
  Attend(attention, *kernels, Helpers(threads, pool), pool);
  return ffi::Error::Success();
}

// y = x + scale * post_norm(o(attention(q(norm(x)), k(norm(x)), v(norm(x))))), with q, k, v and what attention makes of
// them in `between`. Operands: the cache, the block table, x[tokens, columns], those of TakeAttention, the norm, q, k,
// v, o, the post norm. Settings: instruction set, threads, those of TakeAttention, the norm, the matrices, the scale,
// the post norm.
ffi::Error AttentionBlock(ffi::ThreadPool pool, ffi::AnyBuffer cache, Indices block_table, Floats x,
                          ffi::RemainingArgs rest, ffi::Result<Floats> y, ffi::Result<ffi::AnyBuffer> new_cache,
                          ffi::Result<Floats> between, ffi::Span<const int64_t> numbers) {
  Settings settings(numbers);
  Operands operands(rest);
  const auto set = static_cast<InstructionSet>(settings.Int());
  const int64_t threads = settings.Int();
  const Kernels* kernels = FindKernels(set);
  if (kernels == nullptr && set != InstructionSet::kNull) return Refuse("this CPU lacks the instruction set");
  const int64_t tokens = x.dimensions()[0];
  Attention attention = TakeAttention(settings, operands, cache, block_table, tokens);
  Projection in{};
  in.kernels = kernels;
  in.x = x.typed_data();
  in.count = tokens;
  in.columns = x.dimensions()[1];
  in.norm = TakeNorm(settings, operands, in.columns, &in.norm_eps);
  in.matrix_count = 3;
  const int64_t q_size = attention.heads * attention.geometry.head_dim;
  const int64_t k_size = attention.geometry.kv_heads * attention.geometry.head_dim;
  float* free = between->typed_data();
  bool fits = true;
  for (int i = 0; i < 3; ++i) {
    in.matrices[i] = TakeMatrix(settings, operands, in.columns);
    in.matrices[i].y = free;
    fits = fits && in.matrices[i].rows == (i == 0 ? q_size : k_size);
    free += tokens * in.matrices[i].rows;
  }
  attention.q = in.matrices[0].y;
  attention.k = in.matrices[1].y;
  attention.v = in.matrices[2].y;
  attention.out = free;
  Projection out{};
  out.kernels = kernels;
  out.x = attention.out;
  out.count = tokens;
  out.columns = q_size;
  out.matrix_count = 1;
  out.matrices[0] = TakeMatrix(settings, operands, q_size);
  out.matrices[0].y = y->typed_data();
  out.residual = in.x;
  out.residual_scale = settings.Float();
  out.post_norm = TakeNorm(settings, operands, in.columns, &out.post_norm_eps);
  if (!operands.complete() || !settings.complete() || !fits || out.matrices[0].rows != in.columns ||
      y->element_count() != x.element_count() ||
      static_cast<int64_t>(between->element_count()) != 2 * tokens * (q_size + k_size)) {
    return Refuse("the shapes of the arrays do not fit together");
  }
  if (const char* rule = WhatIsWrong(attention, cache, *new_cache)) return Refuse(rule);
  if (set == InstructionSet::kNull) std::memset(y->typed_data(), 0, y->size_bytes());
  if (set == InstructionSet::kNull || tokens == 0) return ffi::Error::Success();
  const FloatEnvironment environment;
  const int helpers = Helpers(threads, pool);
  RunTimed(in, helpers, pool);
  Attend(attention, *kernels, helpers, pool);
  RunTimed(out, helpers, pool);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace realm

REALM_EXPORT_HANDLER(realm_paged_attention);
XLA_FFI_DEFINE_HANDLER_SYMBOL(realm_paged_attention, realm::PagedAttention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()  // cache
                                  .Arg<realm::Indices>()  // block_table
                                  .RemainingArgs()
                                  .Ret<realm::Floats>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<ffi::Span<const int64_t>>("settings"));

REALM_EXPORT_HANDLER(realm_attention_block);
XLA_FFI_DEFINE_HANDLER_SYMBOL(realm_attention_block, realm::AttentionBlock,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()  // cache
                                  .Arg<realm::Indices>()  // block_table
                                  .Arg<realm::Floats>()   // x
                                  .RemainingArgs()
                                  .Ret<realm::Floats>()   // y
                                  .Ret<ffi::AnyBuffer>()  // cache
                                  .Ret<realm::Floats>()   // between
                                  .Attr<ffi::Span<const int64_t>>("settings"));
