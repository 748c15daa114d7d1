// What a call of paged_attention works on, and what an instruction set provides for it.
//
// The keys of a sequence are cut into chunks of 256 slots, 16 groups of the cache, at fixed positions. A unit of work
// is some tokens of one sequence, one kv head and one chunk; it leaves a partial result for each of its rows:
//
//     top = max score, total = sum e^(score - top), weighted[channel] = sum e^(score - top) value[channel]
//
// A row is one query head of one token. Its partial results hold the same operations in the same order whatever rows
// share its unit, and they are merged in the order of the chunks, so that a row depends on its own position alone.
#ifndef CPU_KERNELS_ATTENTION_H_
#define CPU_KERNELS_ATTENTION_H_

#include <cstdint>

#include "kv_cache.h"

namespace realm {

constexpr int kChunkGroups = 16;
constexpr int kChunkSlots = kChunkGroups * kLanes;

enum class RopeStyle : int32_t { kNone, kInterleaved, kHalf };
enum class QkNorm : int32_t { kNone, kHead, kFull };

struct AttentionOptions {
  float scale;
  int64_t window;  // position p sees (p - window, p]
  float softcap;   // infinite where scores are not capped
  RopeStyle rope_style;
  QkNorm norm;
  float norm_eps;
};

// One call. `out` also holds the queries, normalised, rotated and scaled, until their results replace them.
struct Attention {
  AttentionOptions options;
  CacheGeometry geometry;
  int64_t tokens;
  int64_t heads;
  int64_t sequences;
  int64_t pages;  // a sequence, in the block table
  int64_t blocks;
  int64_t rope_pairs;
  const float* q;
  const float* k;
  const float* v;
  const int32_t* positions;
  const int32_t* query_start;
  const int32_t* context_lens;
  const int32_t* block_table;
  const float* cos;
  const float* sin;
  const float* q_norm;
  const float* k_norm;
  const float* sinks;  // null where there are none
  uint8_t* cache;
  float* out;
};

// The slots [begin, end) that a token sees: positions, as they lie in the padded blocks of its sequence.
struct SlotRange {
  int64_t begin;
  int64_t end;
};

// Tokens of one sequence that are worked on together, and where their partial results lie:
// float[token of the group][head][chunk of the group][channels + 16], the last 16 for top, total and padding.
struct TokenGroup {
  int64_t sequence;
  int64_t first;
  int64_t count;
  int64_t first_chunk;
  int64_t chunks;
  int64_t first_unit;
  float* partials;
};

// Normalises, rotates and scales a token's queries into `out`, its keys likewise (in `memory`, of kv_heads * channels
// floats), and appends its keys and values to the cache.
using PrepareToken = void (*)(const Attention& attention, int64_t sequence, int64_t token, float* memory);

// A unit of work: the tokens of a group, what each of them sees, a kv head and a chunk.
struct AttentionUnit {
  const TokenGroup* group;
  const SlotRange* visible;
  int64_t kv_head;
  int64_t chunk;
};

// Computes the partial results of a unit, and prefetches the first keys of the one that most likely comes `next`, which
// may be null.
using AttendChunk = void (*)(const Attention& attention, const AttentionUnit& unit, const AttentionUnit* next);

// Merges the partial results of heads [first, last) of the token into `out`.
using MergePartials = void (*)(const Attention& attention, const TokenGroup& group, const SlotRange& visible,
                               int64_t token, int64_t first, int64_t last);

struct AttentionKernels {
  PrepareToken prepare[kCacheKinds];
  AttendChunk attend[kCacheKinds];
  MergePartials merge;
};

}  // namespace realm

#endif  // CPU_KERNELS_ATTENTION_H_
