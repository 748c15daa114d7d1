// Paged attention: portable against dense attention in double, every instruction set against portable, for each cache.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "attention_plan.h"
#include "check.h"
#include "probe.h"

namespace realm::test {
namespace {

constexpr double kEps = 0x1p-24;  // what one rounding to float32 may change, relative
constexpr int64_t kKvHeads = 2, kHeads = 6, kHeadDim = 40, kBlockSize = 24, kPages = 13, kBlocks = 2 * kPages + 1;
constexpr int64_t kRopePairs = 16;  // of 20: the rest of a head is not rotated
constexpr int32_t kContexts[] = {300, 9};

std::vector<float> Draw(int64_t count, Random& random) {
  std::vector<float> floats(static_cast<size_t>(count));
  for (float& value : floats) value = random.Normal();
  return floats;
}

// Two sequences, all of their tokens, first those before `decoded` of the last ones, then the rest. Blocks lie
// anywhere.
struct Case {
  AttentionOptions options{0.2f, kPages * kBlockSize, INFINITY, RopeStyle::kNone, QkNorm::kNone, 1e-6f};
  CacheKind kind = CacheKind::kFloat32;
  bool sinks = false;
  int decoded = 5;
};

struct Operands {
  std::vector<float> q, k, v, cos, sin, q_norm, k_norm, sinks;
  std::vector<int32_t> positions, query_start, block_table;
};

Operands DrawOperands(const Case& test, bool decode) {
  Random random(decode ? 22 : 21);
  Operands o;
  o.query_start = {0};
  for (int32_t context : kContexts) {
    const int32_t before = context - test.decoded;
    for (int32_t p = decode ? before : 0; p < (decode ? context : before); ++p) o.positions.push_back(p);
    o.query_start.push_back(static_cast<int32_t>(o.positions.size()));
  }
  const auto tokens = static_cast<int64_t>(o.positions.size());
  o.q = Draw(tokens * kHeads * kHeadDim, random);
  o.k = Draw(tokens * kKvHeads * kHeadDim, random);
  o.v = Draw(tokens * kKvHeads * kHeadDim, random);
  for (int64_t i = 0; i < tokens * kRopePairs; ++i) {
    const float angle = random.Uniform(-3.0f, 3.0f);
    o.cos.push_back(std::cos(angle));
    o.sin.push_back(std::sin(angle));
  }
  o.q_norm = Draw(kHeads * kHeadDim, random);
  o.k_norm = Draw(kHeads * kHeadDim, random);
  o.sinks = Draw(kHeads, random);
  for (int32_t page = 0; page < 2 * kPages; ++page) o.block_table.push_back(page * 10 % kBlocks);
  return o;
}

// As the handler in attention.cc runs the phases, on one thread and the units last first. Returns the output.
std::vector<float> Attend(const AttentionKernels& kernels, const Case& test, const Operands& o,
                          std::vector<uint8_t>& cache, const int32_t* contexts) {
  Attention a{};
  a.options = test.options;
  a.geometry = MakeCacheGeometry(test.kind, kBlockSize, kKvHeads, kHeadDim);
  a.tokens = static_cast<int64_t>(o.positions.size());
  a.heads = kHeads;
  a.sequences = 2;
  a.pages = kPages;
  a.blocks = kBlocks;
  a.rope_pairs = kRopePairs;
  a.q = o.q.data();
  a.k = o.k.data();
  a.v = o.v.data();
  a.positions = o.positions.data();
  a.query_start = o.query_start.data();
  a.context_lens = contexts;
  a.block_table = o.block_table.data();
  a.cos = o.cos.data();
  a.sin = o.sin.data();
  a.q_norm = o.q_norm.data();
  a.k_norm = o.k_norm.data();
  a.sinks = test.sinks ? o.sinks.data() : nullptr;
  cache.resize(static_cast<size_t>(kBlocks * a.geometry.block_bytes));
  a.cache = cache.data();
  std::vector<float> out(o.q.size());
  a.out = out.data();
  const char* wrong = WhatIsWrong(a);
  Check(wrong == nullptr, wrong == nullptr ? "" : wrong);

  const auto kind = static_cast<int>(test.kind);
  AttentionPlan plan(a);
  std::vector<float> memory(static_cast<size_t>((kKvHeads + 1) * a.geometry.channels));
  for (size_t i = plan.group_count(); i-- > 0;) {
    const TokenGroup& group = plan.group(i);
    for (int64_t token = group.first; token < group.first + group.count; ++token) {
      kernels.prepare[kind](a, group.sequence, token, memory.data());
    }
  }
  for (size_t first = 0; first < plan.group_count();) {
    const Slab slab = plan.SlabFrom(first);
    std::vector<float> partials(static_cast<size_t>(slab.floats));
    plan.Place(slab, partials.data());
    for (int64_t i = slab.units; i-- > 0;) {
      const AttentionUnit unit = plan.UnitAt(slab, i);
      const AttentionUnit next = plan.UnitAt(slab, i > 0 ? i - 1 : i);
      kernels.attend[kind](a, unit, i > 0 ? &next : nullptr);
    }
    for (size_t i = slab.first; i < slab.last; ++i) {
      const TokenGroup& group = plan.group(i);
      for (int64_t j = 0; j < group.count; ++j) {
        kernels.merge(a, group, plan.visible(group)[j], group.first + j, 0, kHeads);
      }
    }
    first = slab.last;
  }
  return out;
}

// Outputs of the prompts and of the tokens after them, then the cache.
struct Results {
  std::vector<float> prompt, decoded;
  std::vector<uint8_t> cache;
};

Results AttendTwice(const AttentionKernels& kernels, const Case& test) {
  Results results;
  const int32_t before[] = {kContexts[0] - test.decoded, kContexts[1] - test.decoded};
  results.prompt = Attend(kernels, test, DrawOperands(test, false), results.cache, before);
  results.decoded = Attend(kernels, test, DrawOperands(test, true), results.cache, kContexts);
  return results;
}

REALM_TEST(AttentionEqualsPortable) {
  for (int kind = 0; kind < kCacheKinds; ++kind) {
    for (int variant = 0; variant < 4; ++variant) {
      Case test;
      test.kind = static_cast<CacheKind>(kind);
      if (variant == 1) test.options.rope_style = RopeStyle::kHalf;
      if (variant >= 2) test.options.rope_style = RopeStyle::kInterleaved;
      if (variant == 1) test.options.norm = QkNorm::kHead;
      if (variant == 2) test.options.norm = QkNorm::kFull;
      if (variant >= 2) test.options.window = 70;
      if (variant == 3) test.options.softcap = 3.0f;
      test.sinks = variant % 2 == 1;
      const Results expected = AttendTwice(Sets()[0].kernels->attention, test);
      for (const Set& set : Sets()) {
        const Results got = AttendTwice(set.kernels->attention, test);
        const auto same = [&](const std::vector<float>& a, const std::vector<float>& b, const char* what) {
          CheckSame(a.data(), b.data(), a.size(), set.name, " cache ", kind, " variant ", variant, " ", what);
        };
        same(got.prompt, expected.prompt, "prompt");
        same(got.decoded, expected.decoded, "decoded");
        Check(got.cache == expected.cache, set.name, " cache ", kind, " variant ", variant, " holds other bytes");
      }
      for (float value : expected.decoded) Check(std::isfinite(value), "cache ", kind, " gives ", value);
    }
  }
}

REALM_TEST(AttentionIsThatOfDoubles) {
  const Case test;
  const Results results = AttendTwice(Sets()[0].kernels->attention, test);
  const Operands prompt = DrawOperands(test, false), decoded = DrawOperands(test, true);
  for (size_t sequence = 0; sequence < 2; ++sequence) {
    // Row p of k and v is that of position p of the sequence.
    std::vector<const float*> k, v;
    for (const Operands* o : {&prompt, &decoded}) {
      for (auto t = o->query_start[sequence]; t < o->query_start[sequence + 1]; ++t) {
        k.push_back(o->k.data() + t * kKvHeads * kHeadDim);
        v.push_back(o->v.data() + t * kKvHeads * kHeadDim);
      }
    }
    for (auto t = decoded.query_start[sequence]; t < decoded.query_start[sequence + 1]; ++t) {
      const auto count = static_cast<size_t>(decoded.positions[static_cast<size_t>(t)]) + 1;
      for (int64_t head = 0; head < kHeads; ++head) {
        const float* q = decoded.q.data() + (t * kHeads + head) * kHeadDim;
        const int64_t at = head / (kHeads / kKvHeads) * kHeadDim;
        std::vector<double> weights(count);
        double magnitude = 0, largest = 0;
        for (size_t p = 0; p < count; ++p) {
          double score = 0, parts = 0;
          for (int64_t i = 0; i < kHeadDim; ++i) {
            const double product = static_cast<double>(test.options.scale) * q[i] * k[p][at + i];
            score += product;
            parts += std::fabs(product);
            largest = std::max(largest, std::fabs(static_cast<double>(v[p][at + i])));
          }
          weights[p] = std::exp(score);
          magnitude = std::max(magnitude, parts);
        }
        const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
        // A score is the sum of head_dim products of a scaled query, less the top, which is at most twice its size: so
        // much changes a weight relatively, once itself and once through the total. A weight takes e^x, 4, and takes
        // part in sums of `count`, as the total does; merging chunks multiplies both by another e^x.
        const double scores = (static_cast<double>(kHeadDim) + 1 + 2) * kEps * magnitude;
        const double bound = (2 * scores + (2 * static_cast<double>(count) + 32) * kEps) * largest;
        for (int64_t i = 0; i < kHeadDim; ++i) {
          double exact = 0;
          for (size_t p = 0; p < count; ++p) exact += weights[p] / total * v[p][at + i];
          const float got = results.decoded[static_cast<size_t>((t * kHeads + head) * kHeadDim + i)];
          Check(std::fabs(got - exact) <= bound, "token ", t, " head ", head, ": ", got, " instead of ", exact);
        }
      }
    }
  }
}

}  // namespace
}  // namespace realm::test
