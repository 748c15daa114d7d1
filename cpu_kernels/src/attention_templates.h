// The kernels of attention, written once over the vector operations `V` of an instruction set.
//
// A score is one chain of fused products over ascending channels, a weighted value one over ascending positions, and
// positions that a row does not see take no part: what shares a row's registers never changes its bits.
#ifndef CPU_KERNELS_ATTENTION_TEMPLATES_H_
#define CPU_KERNELS_ATTENTION_TEMPLATES_H_

#include <cstdint>
#include <cstring>
#include <utility>

#include "attention.h"
#include "cache_codec.h"
#include "half.h"
#include "macros.h"
#include "prefetch.h"
#include "vector_math.h"

namespace realm {

// Groups of positions between what is read and what is prefetched.
constexpr int kAhead = 4;

constexpr uint32_t kMinusInfinity = 0xff800000u;

// Rows that share what is read, at most, and how many groups of positions they are multiplied by, or vectors of
// channels they sum, at a time: six rows of four accumulators fill 32 registers, six of one fill 8.
constexpr int kMostRows = 6;
template <class V>
constexpr int kHeight = V::kFloatRegisters >= 8 ? kMostRows : 2;
template <class V>
constexpr int kWide = V::kFloatRegisters >= 32 ? 4 : 1;

// Where the groups of a chunk lie, by their place in it. Only those that the unit sees are set, and kAhead behind them.
struct ChunkView {
  const uint8_t* keys[kChunkGroups + kAhead];
  const uint8_t* values[kChunkGroups + kAhead];
  int held[kChunkGroups];  // positions of the group: 16, or fewer at the end of a block
};

// Some rows of a unit that see some of a chunk's slots: [begin, end) of it each.
struct Strip {
  int rows;
  const float* q[kMostRows];
  float* partial[kMostRows];
  int begin[kMostRows];
  int end[kMostRows];
};

// scores[row][kChunkSlots], for `groups` groups of positions from `keys` on.
template <class V, CacheKind kind, int rows, int groups>
void Score(const Strip& strip, const uint8_t* const* keys, const CacheGeometry& geometry, float* scores) {
  constexpr int64_t channel_bytes = kLanes * ElementBytes(kind);
  constexpr int64_t bytes = groups * channel_bytes;
  const bool second = StreamsThroughSecondCache();
  typename V::Floats sums[rows][groups];
  REALM_UNROLL
  for (int row = 0; row < rows; ++row) {
    REALM_UNROLL
    for (int g = 0; g < groups; ++g) sums[row][g] = V::SplatFloat(0.0f);
  }
  for (int64_t first = 0; first < geometry.head_dim; first += kScaleChannels) {
    [[maybe_unused]] typename V::Floats scales[groups];
    if constexpr (kind == CacheKind::kQ8_0) {
      // The scales of 32 channels take 32 bytes.
      REALM_UNROLL
      for (int g = 0; g < groups; ++g) scales[g] = V::LoadHalves(keys[g] + geometry.channels * kLanes + first);
    }
    const int64_t left = geometry.head_dim - first;
    const int64_t end = first + (left < kScaleChannels ? left : kScaleChannels);
    for (int64_t d = first; d < end; ++d) {
      REALM_UNROLL
      for (int64_t byte = 0; byte < bytes; byte += 64) {
        const int64_t line = (d * bytes + byte) / 64;
        const uint8_t* ahead = keys[kAhead + line % groups] + line / groups * 64;
        second ? PrefetchLine<kSecond>(ahead) : PrefetchLine<kKeep>(ahead);
      }
      REALM_UNROLL
      for (int g = 0; g < groups; ++g) {
        typename V::Floats key = LoadElements<V, kind>(keys[g] + d * channel_bytes);
        if constexpr (kind == CacheKind::kQ8_0) key = V::Mul(key, scales[g]);
        REALM_UNROLL
        for (int row = 0; row < rows; ++row) {
          sums[row][g] = V::Fma(V::SplatFloat(strip.q[row][d]), key, sums[row][g]);
        }
      }
    }
  }
  REALM_UNROLL
  for (int row = 0; row < rows; ++row) {
    REALM_UNROLL
    for (int g = 0; g < groups; ++g) V::StoreFloats(scores + row * kChunkSlots + g * kLanes, sums[row][g]);
  }
}

// Adds weights[row][slot] * value[slot] for slots [begin, end) to `vectors` vectors of channels of partial[row].
template <class V, CacheKind kind, int rows, int vectors>
void AddValues(const float* weights, const ChunkView& chunk, int begin, int end, int64_t channel,
               const CacheGeometry& geometry, float* const* partial) {
  constexpr int64_t size = ElementBytes(kind);
  const bool second = StreamsThroughSecondCache();
  typename V::Floats sums[rows][vectors];
  REALM_UNROLL
  for (int row = 0; row < rows; ++row) {
    REALM_UNROLL
    for (int i = 0; i < vectors; ++i) sums[row][i] = V::LoadFloats(partial[row] + channel + i * kLanes);
  }
  for (int group = begin / kLanes; group * kLanes < end; ++group) {
    const int base = group * kLanes;
    const int first = begin > base ? begin : base;
    const int last = end < base + chunk.held[group] ? end : base + chunk.held[group];
    for (int slot = first; slot < last; ++slot) {
      const int64_t row_at = (slot - base) * geometry.row_bytes;
      const uint8_t* values = chunk.values[group] + row_at;
      const uint8_t* ahead = chunk.values[group + kAhead] + row_at + channel * size;
      REALM_UNROLL
      for (int64_t byte = 0; byte < vectors * kLanes * size; byte += 64) {
        second ? PrefetchLine<kSecond>(ahead + byte) : PrefetchLine<kKeep>(ahead + byte);
      }
      [[maybe_unused]] typename V::Floats scale;
      REALM_UNROLL
      for (int i = 0; i < vectors; ++i) {
        typename V::Floats value = LoadElements<V, kind>(values + (channel + i * kLanes) * size);
        if constexpr (kind == CacheKind::kQ8_0) {
          // `channel` is a multiple of 32 wherever there are several vectors.
          if (i % 2 == 0) scale = V::SplatHalf(values + geometry.channels + 2 * ((channel + i * kLanes) / 32));
          value = V::Mul(value, scale);
        }
        REALM_UNROLL
        for (int row = 0; row < rows; ++row) {
          sums[row][i] = V::Fma(V::SplatFloat(weights[row * kChunkSlots + slot]), value, sums[row][i]);
        }
      }
    }
  }
  REALM_UNROLL
  for (int row = 0; row < rows; ++row) {
    REALM_UNROLL
    for (int i = 0; i < vectors; ++i) V::StoreFloats(partial[row] + channel + i * kLanes, sums[row][i]);
  }
}

using ScoreFunction = void (*)(const Strip&, const uint8_t* const*, const CacheGeometry&, float*);
using AddFunction = void (*)(const float*, const ChunkView&, int, int, int64_t, const CacheGeometry&, float* const*);

// The functions for 1, 2, ... kHeight rows.
template <class V, CacheKind kind, int width, class Heights = std::make_integer_sequence<int, kHeight<V>>>
struct ByHeight;
template <class V, CacheKind kind, int width, int... rows>
struct ByHeight<V, kind, width, std::integer_sequence<int, rows...>> {
  static constexpr ScoreFunction kScore[] = {Score<V, kind, rows + 1, width>...};
  static constexpr AddFunction kAdd[] = {AddValues<V, kind, rows + 1, width>...};
};

template <class V, CacheKind kind>
void AddAllChannels(int rows, const float* weights, const ChunkView& chunk, int begin, int end,
                    const CacheGeometry& geometry, float* const* partial) {
  if (begin >= end) return;
  int64_t channel = 0;
  for (; channel + kWide<V> * kLanes <= geometry.channels; channel += kWide<V> * kLanes) {
    ByHeight<V, kind, kWide<V>>::kAdd[rows - 1](weights, chunk, begin, end, channel, geometry, partial);
  }
  for (; channel < geometry.channels; channel += kLanes) {
    ByHeight<V, kind, 1>::kAdd[rows - 1](weights, chunk, begin, end, channel, geometry, partial);
  }
}

// Overwrites what lies in the groups of [begin, end) without being a position that the row sees.
template <class V>
REALM_INLINE void FillUnseen(float* row, const ChunkView& chunk, int begin, int end, float value) {
  for (int slot = begin / kLanes * kLanes; slot < begin; ++slot) row[slot] = value;
  for (int group = begin / kLanes; group * kLanes < end; ++group) {
    const int held = group * kLanes + chunk.held[group];
    for (int slot = end < held ? end : held; slot < (group + 1) * kLanes; ++slot) row[slot] = value;
  }
}

// Turns a row's scores into weights e^(score - top) and notes top and total.
template <class V>
void Softmax(const Attention& attention, const ChunkView& chunk, int begin, int end, float* row, float* top_and_total) {
  using Floats = typename V::Floats;
  const int first = begin / kLanes * kLanes;
  const float cap = attention.options.softcap;
  if (cap < FloatOfBits(0x7f800000u)) {
    for (int slot = first; slot < end; slot += kLanes) {
      const Floats small = V::Div(V::LoadFloats(row + slot), V::SplatFloat(cap));
      V::StoreFloats(row + slot, V::Mul(V::SplatFloat(cap), Tanh<V>(small)));
    }
  }
  FillUnseen<V>(row, chunk, begin, end, FloatOfBits(kMinusInfinity));
  Floats top = V::SplatFloat(FloatOfBits(kMinusInfinity));
  // In this order the maximum is never NaN; a score that is makes its weight NaN, and the total.
  for (int slot = first; slot < end; slot += kLanes) top = V::Max(V::LoadFloats(row + slot), top);
  top_and_total[0] = V::Largest(top);
  top = V::SplatFloat(top_and_total[0]);
  for (int slot = first; slot < end; slot += kLanes) {
    V::StoreFloats(row + slot, ExpOfNegative<V>(V::Sub(V::LoadFloats(row + slot), top)));
  }
  FillUnseen<V>(row, chunk, begin, end, 0.0f);
  Floats total = V::SplatFloat(0.0f);
  for (int slot = first; slot < end; slot += kLanes) total = V::Add(total, V::LoadFloats(row + slot));
  top_and_total[1] = V::Sum(total);
}

// Rows see different slots at their ends only: what all of them see is read once for all.
template <class V, CacheKind kind>
void AddStrip(const Strip& strip, const ChunkView& chunk, const CacheGeometry& geometry, const float* weights) {
  int begin = 0;
  int end = kChunkSlots;
  for (int row = 0; row < strip.rows; ++row) {
    begin = strip.begin[row] > begin ? strip.begin[row] : begin;
    end = strip.end[row] < end ? strip.end[row] : end;
    std::memset(strip.partial[row], 0, static_cast<size_t>(geometry.channels) * sizeof(float));
  }
  if (begin > end) begin = end = kChunkSlots;
  for (int row = 0; row < strip.rows; ++row) {
    const int stop = strip.end[row] < begin ? strip.end[row] : begin;
    AddAllChannels<V, kind>(1, weights + row * kChunkSlots, chunk, strip.begin[row], stop, geometry,
                            strip.partial + row);
  }
  AddAllChannels<V, kind>(strip.rows, weights, chunk, begin, end, geometry, strip.partial);
  for (int row = 0; row < strip.rows; ++row) {
    AddAllChannels<V, kind>(1, weights + row * kChunkSlots, chunk, end, strip.end[row], geometry, strip.partial + row);
  }
}

template <class V, CacheKind kind>
void AttendStrip(const Attention& attention, const Strip& strip, const ChunkView& chunk) {
  alignas(64) float scores[kMostRows * kChunkSlots];
  int begin = kChunkSlots;
  int end = 0;
  for (int row = 0; row < strip.rows; ++row) {
    begin = strip.begin[row] < begin ? strip.begin[row] : begin;
    end = strip.end[row] > end ? strip.end[row] : end;
  }
  const int groups = (end + kLanes - 1) / kLanes;
  int group = begin / kLanes;
  for (; group + kWide<V> <= groups; group += kWide<V>) {
    ByHeight<V, kind, kWide<V>>::kScore[strip.rows - 1](strip, chunk.keys + group, attention.geometry,
                                                        scores + group * kLanes);
  }
  for (; group < groups; ++group) {
    ByHeight<V, kind, 1>::kScore[strip.rows - 1](strip, chunk.keys + group, attention.geometry,
                                                 scores + group * kLanes);
  }
  for (int row = 0; row < strip.rows; ++row) {
    Softmax<V>(attention, chunk, strip.begin[row], strip.end[row], scores + row * kChunkSlots,
               strip.partial[row] + attention.geometry.channels);
  }
  AddStrip<V, kind>(strip, chunk, attention.geometry, scores);
}

// The slots of a chunk that a token sees, from 0 to kChunkSlots.
template <class V>
REALM_INLINE void ClipToChunk(const SlotRange& visible, int64_t chunk, int* begin, int* end) {
  const int64_t first = visible.begin - chunk * kChunkSlots;
  const int64_t last = visible.end - chunk * kChunkSlots;
  *begin = static_cast<int>(first < 0 ? 0 : first > kChunkSlots ? kChunkSlots : first);
  *end = static_cast<int>(last < 0 ? 0 : last > kChunkSlots ? kChunkSlots : last);
}

// What tokens of a unit see of its chunk: the groups [begin, end), and how many tokens see any of it.
struct SeenGroups {
  int begin;
  int end;
  int64_t tokens;
};

template <class V>
REALM_INLINE SeenGroups FindSeenGroups(const AttentionUnit& unit) {
  SeenGroups seen{kChunkGroups, 0, 0};
  for (int64_t i = 0; i < unit.group->count; ++i) {
    int begin;
    int end;
    ClipToChunk<V>(unit.visible[i], unit.chunk, &begin, &end);
    if (begin >= end) continue;
    seen.begin = begin / kLanes < seen.begin ? begin / kLanes : seen.begin;
    seen.end = (end + kLanes - 1) / kLanes > seen.end ? (end + kLanes - 1) / kLanes : seen.end;
    ++seen.tokens;
  }
  return seen;
}

// Where the keys of a group of the unit's chunk lie.
template <class V>
REALM_INLINE const uint8_t* KeysOf(const Attention& attention, const AttentionUnit& unit, int group) {
  const CacheGeometry& geometry = attention.geometry;
  const int64_t of_block = geometry.positions / kLanes;
  const int64_t index = unit.chunk * kChunkGroups + group;
  const int64_t page = unit.group->sequence * attention.pages + index / of_block;
  return attention.cache + attention.block_table[page] * geometry.block_bytes +
         2 * unit.kv_head * geometry.plane_bytes + index % of_block * kLanes * geometry.row_bytes;
}

template <class V>
void FillView(const Attention& attention, const AttentionUnit& unit, const SeenGroups& seen, const AttentionUnit* next,
              ChunkView* view) {
  const CacheGeometry& geometry = attention.geometry;
  const int64_t of_block = geometry.positions / kLanes;
  for (int i = seen.begin; i < seen.end; ++i) {
    view->keys[i] = KeysOf<V>(attention, unit, i);
    view->values[i] = view->keys[i] + geometry.plane_bytes;
    const int64_t held = geometry.block_size - (unit.chunk * kChunkGroups + i) % of_block * kLanes;
    view->held[i] = static_cast<int>(held < kLanes ? held : kLanes);
  }
  // Values follow the keys, and the next unit's keys the values.
  const SeenGroups then = next == nullptr ? SeenGroups{} : FindSeenGroups<V>(*next);
  for (int i = 0; i < kAhead; ++i) {
    view->keys[seen.end + i] = view->values[seen.begin + i < seen.end ? seen.begin + i : seen.end - 1];
    const bool more = then.tokens > 0 && then.begin + i < then.end;
    view->values[seen.end + i] = more ? KeysOf<V>(attention, *next, then.begin + i) : view->values[seen.end - 1];
  }
}

template <class V, CacheKind kind>
void AttendUnit(const Attention& attention, const AttentionUnit& unit, const AttentionUnit* next) {
  const CacheGeometry& geometry = attention.geometry;
  const int64_t query_heads = attention.heads / geometry.kv_heads;
  const TokenGroup& group = *unit.group;
  const SeenGroups seen = FindSeenGroups<V>(unit);
  if (seen.tokens == 0) return;
  ChunkView view;
  FillView<V>(attention, unit, seen, next, &view);
  int64_t rows = seen.tokens * query_heads;
  const int64_t strips = (rows + kHeight<V> - 1) / kHeight<V>;
  const int64_t height = (rows + strips - 1) / strips;
  Strip strip;
  strip.rows = 0;
  for (int64_t row = 0; row < group.count * query_heads; ++row) {
    const int64_t token = row / query_heads;
    const int64_t head = unit.kv_head * query_heads + row % query_heads;
    int* begin = strip.begin + strip.rows;
    ClipToChunk<V>(unit.visible[token], unit.chunk, begin, strip.end + strip.rows);
    if (*begin >= strip.end[strip.rows]) continue;
    const int64_t partial = (token * attention.heads + head) * group.chunks + unit.chunk - group.first_chunk;
    strip.partial[strip.rows] = group.partials + partial * (geometry.channels + kLanes);
    strip.q[strip.rows] = attention.out + ((group.first + token) * attention.heads + head) * geometry.head_dim;
    --rows;
    if (++strip.rows < height && rows > 0) continue;
    AttendStrip<V, kind>(attention, strip, view);
    strip.rows = 0;
  }
}

// A sink is a score without a value.
template <class V>
void Merge(const Attention& attention, const TokenGroup& group, const SlotRange& visible, int64_t token, int64_t first,
           int64_t last) {
  using Floats = typename V::Floats;
  const CacheGeometry& geometry = attention.geometry;
  const int64_t stride = geometry.channels + kLanes;
  const int64_t begin = visible.begin / kChunkSlots - group.first_chunk;
  const int64_t end = (visible.end + kChunkSlots - 1) / kChunkSlots - group.first_chunk;
  for (int64_t head = first; head < last; ++head) {
    float* out = attention.out + (token * attention.heads + head) * geometry.head_dim;
    if (visible.begin >= visible.end) {
      std::memset(out, 0, static_cast<size_t>(geometry.head_dim) * sizeof(float));
      continue;
    }
    float* partials = group.partials + ((token - group.first) * attention.heads + head) * group.chunks * stride;
    float* sums = partials + begin * stride;
    float top = attention.sinks != nullptr ? attention.sinks[head] : FloatOfBits(kMinusInfinity);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const float other = partials[chunk * stride + geometry.channels];
      top = other > top || top != top ? other : top;
    }
    Floats total = V::SplatFloat(0.0f);
    if (attention.sinks != nullptr) total = ExpOfNegative<V>(V::SplatFloat(attention.sinks[head] - top));
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const float* partial = partials + chunk * stride;
      const Floats weight = ExpOfNegative<V>(V::SplatFloat(partial[geometry.channels] - top));
      total = V::Fma(V::SplatFloat(partial[geometry.channels + 1]), weight, total);
      for (int64_t channel = 0; channel < geometry.channels; channel += kLanes) {
        const Floats before = chunk == begin ? V::SplatFloat(0.0f) : V::LoadFloats(sums + channel);
        V::StoreFloats(sums + channel, V::Fma(V::LoadFloats(partial + channel), weight, before));
      }
    }
    for (int64_t channel = 0; channel < geometry.head_dim; channel += kLanes) {
      const int64_t left = geometry.head_dim - channel;
      const Floats result = V::Div(V::LoadFloats(sums + channel), total);
      V::StoreSome(out + channel, result, static_cast<int>(left < kLanes ? left : kLanes));
    }
  }
}

// Rotates pairs of channels: the first of each `step` behind the one before, the second `other` behind the first.
template <class V>
REALM_INLINE void RotatePairs(float* x, const float* cos, const float* sin, int64_t pairs, int64_t step,
                              int64_t other) {
  for (int64_t i = 0; i < pairs; ++i) {
    const float a = x[i * step];
    const float b = x[i * step + other];
    x[i * step] = a * cos[i] - b * sin[i];
    x[i * step + other] = b * cos[i] + a * sin[i];
  }
}

template <class V>
void Rotate(float* x, const float* cos, const float* sin, int64_t pairs, RopeStyle style) {
  if (style == RopeStyle::kHalf) RotatePairs<V>(x, cos, sin, pairs, 1, pairs);
  if (style == RopeStyle::kInterleaved) RotatePairs<V>(x, cos, sin, pairs, 2, 1);
}

// out = scale * rope(norm(x)) for the heads of a token; heads of `out` are `stride` apart.
template <class V>
void PrepareHeads(const Attention& attention, int64_t token, const float* x, const float* norm, int64_t heads,
                  float scale, int64_t stride, float* out) {
  const AttentionOptions& options = attention.options;
  const int64_t size = attention.geometry.head_dim;
  const float* cos = attention.cos + token * attention.rope_pairs;
  const float* sin = attention.sin + token * attention.rope_pairs;
  const bool full = options.norm == QkNorm::kFull;
  float inverse = full ? InverseRms<V>(x, heads * size, options.norm_eps) : 1.0f;
  for (int64_t head = 0; head < heads; ++head, x += size, out += stride) {
    if (options.norm == QkNorm::kNone) {
      std::memcpy(out, x, static_cast<size_t>(size) * sizeof(float));
    } else {
      if (!full) inverse = InverseRms<V>(x, size, options.norm_eps);
      const float* weights = full ? norm + head * size : norm;
      for (int64_t i = 0; i < size; ++i) out[i] = x[i] * inverse * weights[i];
    }
    Rotate<V>(out, cos, sin, attention.rope_pairs, options.rope_style);
    for (int64_t i = 0; i < size; ++i) out[i] *= scale;
  }
}

template <class V, CacheKind kind>
void Prepare(const Attention& attention, int64_t sequence, int64_t token, float* memory) {
  const CacheGeometry& geometry = attention.geometry;
  const int64_t size = geometry.head_dim;
  const int64_t q_size = attention.heads * size;
  const int64_t kv_size = geometry.kv_heads * size;
  const int64_t position = attention.positions[token];
  const int64_t block = attention.block_table[sequence * attention.pages + position / geometry.block_size];
  const int64_t offset = position % geometry.block_size;
  uint8_t* plane = attention.cache + block * geometry.block_bytes;
  // The channels of a key lie in as many lines, which come from memory while the heads are turned.
  for (int64_t head = 0; head < geometry.kv_heads; ++head) {
    const uint8_t* keys = plane + 2 * head * geometry.plane_bytes + offset / kLanes * kLanes * geometry.row_bytes;
    for (int64_t byte = 0; byte < kLanes * geometry.row_bytes; byte += 64) __builtin_prefetch(keys + byte, 1);
  }
  PrepareHeads<V>(attention, token, attention.q + token * q_size, attention.q_norm, attention.heads,
                  attention.options.scale, size, attention.out + token * q_size);
  std::memset(memory, 0, static_cast<size_t>((geometry.kv_heads + 1) * geometry.channels) * sizeof(float));
  PrepareHeads<V>(attention, token, attention.k + token * kv_size, attention.k_norm, geometry.kv_heads, 1.0f,
                  geometry.channels, memory);
  float* value = memory + geometry.kv_heads * geometry.channels;
  for (int64_t head = 0; head < geometry.kv_heads; ++head, plane += 2 * geometry.plane_bytes) {
    AppendKey<V, kind>(memory + head * geometry.channels, geometry, offset, plane);
    std::memcpy(value, attention.v + token * kv_size + head * size, static_cast<size_t>(size) * sizeof(float));
    AppendValue<V, kind>(value, geometry, offset, plane + geometry.plane_bytes);
  }
}

template <class V, CacheKind kind>
constexpr void FillCacheKind(AttentionKernels& kernels) {
  kernels.prepare[static_cast<int>(kind)] = Prepare<V, kind>;
  kernels.attend[static_cast<int>(kind)] = AttendUnit<V, kind>;
}

template <class V>
constexpr AttentionKernels MakeAttentionKernels() {
  AttentionKernels kernels{{}, {}, Merge<V>};
  FillCacheKind<V, CacheKind::kFloat32>(kernels);
  FillCacheKind<V, CacheKind::kFloat16>(kernels);
  FillCacheKind<V, CacheKind::kBfloat16>(kernels);
  FillCacheKind<V, CacheKind::kQ8_0>(kernels);
  return kernels;
}

}  // namespace realm

#endif  // CPU_KERNELS_ATTENTION_TEMPLATES_H_
