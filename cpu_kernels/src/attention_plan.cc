// Which positions tokens see, and how those are shared out as work.
#include "attention_plan.h"

#include <algorithm>

namespace realm {
namespace {

// Tokens that share one reading of a chunk.
constexpr int64_t kGroupTokens = 8;

// Bound of the partial results kept at a time, in floats; a single token may need more. They stay inside the cache
// that the CPU's cores share.
constexpr int64_t kSlabFloats = 2 << 20;

struct Positions {
  int64_t begin;
  int64_t end;
};

Positions VisiblePositions(const Attention& attention, int64_t sequence, int64_t token) {
  const int64_t position = attention.positions[token];
  const int64_t end = std::min<int64_t>(position + 1, attention.context_lens[sequence]);
  return {std::max<int64_t>(0, position + 1 - attention.options.window), std::max<int64_t>(0, end)};
}

int64_t SlotOf(const CacheGeometry& geometry, int64_t position) {
  return position / geometry.block_size * geometry.positions + position % geometry.block_size;
}

bool BlocksAreValid(const Attention& attention, int64_t sequence, int64_t begin, int64_t end) {
  const int32_t* table = attention.block_table + sequence * attention.pages;
  for (int64_t page = begin / attention.geometry.block_size; page * attention.geometry.block_size < end; ++page) {
    if (table[page] < 0 || table[page] >= attention.blocks) return false;
  }
  return true;
}

}  // namespace

const char* WhatIsWrong(const Attention& attention) {
  const int32_t* start = attention.query_start;
  for (int64_t sequence = 0; sequence < attention.sequences; ++sequence) {
    if (start[sequence] < 0 || start[sequence + 1] < start[sequence] || start[sequence + 1] > attention.tokens) {
      return "query_start must ascend from 0 to at most the number of tokens";
    }
    int64_t begin = INT64_MAX;
    int64_t end = 0;
    for (int64_t token = start[sequence]; token < start[sequence + 1]; ++token) {
      const int64_t position = attention.positions[token];
      if (position < 0 || position >= attention.pages * attention.geometry.block_size) {
        return "positions must lie inside the block table";
      }
      begin = std::min(begin, VisiblePositions(attention, sequence, token).begin);
      end = std::max(end, position + 1);
    }
    if (!BlocksAreValid(attention, sequence, begin, end)) return "block_table must name blocks of the cache";
  }
  return attention.sequences > 0 && start[0] != 0 ? "query_start must begin with 0" : nullptr;
}

AttentionPlan::AttentionPlan(const Attention& attention) : attention_(attention) {
  visible_.resize(static_cast<size_t>(attention.tokens));
  for (int64_t sequence = 0; sequence < attention.sequences; ++sequence) AddGroups(sequence);
}

void AttentionPlan::AddGroups(int64_t sequence) {
  bool open = false;
  for (int64_t token = attention_.query_start[sequence]; token < attention_.query_start[sequence + 1]; ++token) {
    const Positions positions = VisiblePositions(attention_, sequence, token);
    SlotRange& range = visible_[static_cast<size_t>(token)];
    range = {0, 0};
    int64_t first = 0;
    int64_t last = 0;
    if (positions.begin < positions.end) {
      range.begin = SlotOf(attention_.geometry, positions.begin);
      range.end = SlotOf(attention_.geometry, positions.end - 1) + 1;
      first = range.begin / kChunkSlots;
      last = (range.end + kChunkSlots - 1) / kChunkSlots;
    }
    if (open) {
      TokenGroup wider = groups_.back();
      const int64_t end = std::max(last, wider.first_chunk + wider.chunks);
      wider.first_chunk = std::min(first, wider.first_chunk);
      wider.chunks = end - wider.first_chunk;
      ++wider.count;
      if (wider.count <= kGroupTokens && Floats(wider) <= kSlabFloats) {
        groups_.back() = wider;
        continue;
      }
    }
    groups_.push_back({sequence, token, 1, first, last - first, 0, nullptr});
    open = true;
  }
}

int64_t AttentionPlan::Floats(const TokenGroup& group) const {
  return group.count * attention_.heads * group.chunks * (attention_.geometry.channels + kLanes);
}

Slab AttentionPlan::SlabFrom(size_t first) {
  Slab slab{first, first, 0, 0};
  while (slab.last < groups_.size()) {
    TokenGroup& group = groups_[slab.last];
    if (slab.last > first && slab.floats + Floats(group) > kSlabFloats) break;
    group.first_unit = slab.units;
    slab.units += group.chunks * attention_.geometry.kv_heads;
    slab.floats += Floats(group);
    ++slab.last;
  }
  return slab;
}

void AttentionPlan::Place(const Slab& slab, float* memory) {
  for (size_t i = slab.first; i < slab.last; ++i) {
    groups_[i].partials = memory;
    memory += Floats(groups_[i]);
  }
}

AttentionUnit AttentionPlan::UnitAt(const Slab& slab, int64_t unit) const {
  const auto begin = groups_.begin() + static_cast<std::ptrdiff_t>(slab.first);
  const auto end = groups_.begin() + static_cast<std::ptrdiff_t>(slab.last);
  const auto behind =
      std::upper_bound(begin, end, unit, [](int64_t u, const TokenGroup& group) { return u < group.first_unit; });
  const TokenGroup& group = *(behind - 1);
  const int64_t inside = unit - group.first_unit;
  return {&group, visible(group), inside / group.chunks, group.first_chunk + inside % group.chunks};
}

}  // namespace realm
