// How the tokens of an attention are cut into groups, slabs and units of work, and whether its indices are valid.
#ifndef CPU_KERNELS_ATTENTION_PLAN_H_
#define CPU_KERNELS_ATTENTION_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention.h"

namespace realm {

// Null, or the rule that the positions, starts or block table of the batch break.
const char* WhatIsWrong(const Attention& attention);

// Groups [first, last) whose partial results share the scratch memory, and their units.
struct Slab {
  size_t first;
  size_t last;
  int64_t units;
  int64_t floats;
};

class AttentionPlan {
 public:
  // The batch must be valid.
  explicit AttentionPlan(const Attention& attention);

  size_t group_count() const { return groups_.size(); }
  const TokenGroup& group(size_t index) const { return groups_[index]; }
  const SlotRange* visible(const TokenGroup& group) const { return visible_.data() + group.first; }

  // The slab of the groups from `first` on, as many as the memory's bound admits. Numbers their units.
  Slab SlabFrom(size_t first);

  // Gives the slab's groups their parts of `memory`, of slab.floats floats.
  void Place(const Slab& slab, float* memory);

  AttentionUnit UnitAt(const Slab& slab, int64_t unit) const;

 private:
  void AddGroups(int64_t sequence);
  int64_t Floats(const TokenGroup& group) const;

  const Attention& attention_;
  std::vector<SlotRange> visible_;
  std::vector<TokenGroup> groups_;
};

}  // namespace realm

#endif  // CPU_KERNELS_ATTENTION_PLAN_H_
