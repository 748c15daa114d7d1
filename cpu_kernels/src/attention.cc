// The FFI handler of paged_attention.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "attention_plan.h"
#include "export.h"
#include "float_environment.h"
#include "kernels.h"
#include "profile.h"
#include "scratch.h"
#include "settings.h"
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

// Whether the arrays have the sizes that those of q, k and the block table call for.
bool SizesFit(const Attention& attention, int64_t v, int64_t positions, int64_t context_lens, int64_t cos, int64_t sin,
              int64_t q_norm, int64_t k_norm, int64_t sinks) {
  const bool full = attention.options.norm == QkNorm::kFull;
  const int64_t size = attention.geometry.head_dim;
  const int64_t kv_heads = attention.geometry.kv_heads;
  const bool norms_fit = attention.options.norm == QkNorm::kNone ||
                         (q_norm == (full ? attention.heads : 1) * size && k_norm == (full ? kv_heads : 1) * size);
  const bool rope_fits =
      attention.options.rope_style == RopeStyle::kNone ||
      (cos == attention.tokens * attention.rope_pairs && sin == cos && 2 * attention.rope_pairs <= size);
  return kv_heads > 0 && attention.heads % kv_heads == 0 && v == attention.tokens * kv_heads * size &&
         positions == attention.tokens && context_lens == attention.sequences && norms_fit && rope_fits &&
         (sinks == 0 || sinks == attention.heads);
}

// Settings: instruction set, threads, kind of the cache, positions of a block, scale, window, softcap, style of
// rotation, norm and its epsilon.
ffi::Error PagedAttention(ffi::ThreadPool pool, Floats q, Floats k, Floats v, ffi::AnyBuffer cache, Indices positions,
                          Indices query_start, Indices context_lens, Indices block_table, Floats cos, Floats sin,
                          Floats q_norm, Floats k_norm, Floats sinks, ffi::Result<Floats> out,
                          ffi::Result<ffi::AnyBuffer> new_cache, ffi::Span<const int64_t> numbers) {
  Settings settings(numbers);
  const auto set = static_cast<InstructionSet>(settings.Int());
  const int64_t threads = settings.Int();
  const Kernels* kernels = FindKernels(set);
  if (kernels == nullptr && set != InstructionSet::kNull) return Refuse("this CPU lacks the instruction set");
  if (q.dimensions().size() != 3 || k.dimensions().size() != 3 || block_table.dimensions().size() != 2) {
    return Refuse("q, k and block_table must have 3, 3 and 2 axes");
  }
  if (cache.untyped_data() != new_cache->untyped_data()) {
    return ffi::Error::Internal("paged_attention: the cache was copied instead of updated in place");
  }
  const auto count = [](const auto& array) { return static_cast<int64_t>(array.element_count()); };
  const auto cache_kind = static_cast<CacheKind>(settings.Int());
  const int64_t block_size = settings.Int();
  Attention attention{};
  attention.options.scale = settings.Float();
  attention.options.window = settings.Int();
  attention.options.softcap = settings.Float();
  attention.options.rope_style = static_cast<RopeStyle>(settings.Int());
  attention.options.norm = static_cast<QkNorm>(settings.Int());
  attention.options.norm_eps = settings.Float();
  if (!settings.complete() || block_size < 1) return Refuse("no such settings");
  attention.geometry = MakeCacheGeometry(cache_kind, block_size, k.dimensions()[1], k.dimensions()[2]);
  attention.tokens = q.dimensions()[0];
  attention.heads = q.dimensions()[1];
  attention.sequences = count(query_start) - 1;
  attention.pages = block_table.dimensions()[1];
  attention.blocks = cache.dimensions()[0];
  attention.rope_pairs = cos.dimensions().back();
  if (q.dimensions()[2] != k.dimensions()[2] || block_table.dimensions()[0] != attention.sequences ||
      !SizesFit(attention, count(v), count(positions), count(context_lens), count(cos), count(sin), count(q_norm),
                count(k_norm), count(sinks))) {
    return Refuse("the shapes of the arrays do not fit together");
  }
  if (static_cast<int64_t>(cache.size_bytes()) != attention.blocks * attention.geometry.block_bytes) {
    return Refuse("the cache is not one of this kind, block size and shape of k");
  }
  attention.q = q.typed_data();
  attention.k = k.typed_data();
  attention.v = v.typed_data();
  attention.positions = positions.typed_data();
  attention.query_start = query_start.typed_data();
  attention.context_lens = context_lens.typed_data();
  attention.block_table = block_table.typed_data();
  attention.cos = cos.typed_data();
  attention.sin = sin.typed_data();
  attention.q_norm = q_norm.typed_data();
  attention.k_norm = k_norm.typed_data();
  attention.sinks = sinks.element_count() > 0 ? sinks.typed_data() : nullptr;
  attention.cache = static_cast<uint8_t*>(new_cache->untyped_data());
  attention.out = out->typed_data();
  if (const char* rule = WhatIsWrong(attention)) return Refuse(rule);
  if (set == InstructionSet::kNull) {
    std::memset(out->typed_data(), 0, out->size_bytes());
    return ffi::Error::Success();
  }
  const int64_t owned = attention.query_start[attention.sequences];
  float* padding = attention.out + owned * attention.heads * attention.geometry.head_dim;
  std::memset(padding, 0, static_cast<size_t>(attention.out + count(*out) - padding) * sizeof(float));
  const CallTimer timer(Handler::kPagedAttention);
  const FloatEnvironment environment;
  Run(attention, kernels->attention, Helpers(threads, pool), pool);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace realm

REALM_EXPORT_HANDLER(realm_paged_attention);
XLA_FFI_DEFINE_HANDLER_SYMBOL(realm_paged_attention, realm::PagedAttention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<realm::Floats>()   // q
                                  .Arg<realm::Floats>()   // k
                                  .Arg<realm::Floats>()   // v
                                  .Arg<ffi::AnyBuffer>()  // cache
                                  .Arg<realm::Indices>()  // positions
                                  .Arg<realm::Indices>()  // query_start
                                  .Arg<realm::Indices>()  // context_lens
                                  .Arg<realm::Indices>()  // block_table
                                  .Arg<realm::Floats>()   // cos
                                  .Arg<realm::Floats>()   // sin
                                  .Arg<realm::Floats>()   // q_norm
                                  .Arg<realm::Floats>()   // k_norm
                                  .Arg<realm::Floats>()   // sinks
                                  .Ret<realm::Floats>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<ffi::Span<const int64_t>>("settings"));
