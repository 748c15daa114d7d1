// A router's choice of experts for a token, written once over the vector operations `V` of an instruction set.
#ifndef CPU_KERNELS_ROUTE_H_
#define CPU_KERNELS_ROUTE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels.h"
#include "macros.h"
#include "vector_math.h"

namespace realm {

// Replaces x by e^(x - largest); returns their sum.
template <class V>
float Exponentials(float* x, int64_t count, float largest) {
  typename V::Floats sum = V::SplatFloat(0.0f);
  for (int64_t i = 0; i < count; i += kTileRows) {
    const auto some = static_cast<int>(std::min<int64_t>(kTileRows, count - i));
    const typename V::Floats below = V::Sub(V::LoadSome(x + i, some), V::SplatFloat(largest));
    // Lanes beyond the last may hold positive numbers, for which the function is not made.
    const typename V::Floats power = ExpOfNegative<V>(V::KeepFirst(below, some, 0.0f));
    V::StoreSome(x + i, power, some);
    sum = V::Add(sum, V::KeepFirst(power, some, 0.0f));
  }
  return V::Sum(sum);
}

template <class V>
void Route(const Choice& choice, const float* logits, float* weights) {
  if (std::any_of(logits, logits + choice.experts, [](float x) { return std::isnan(x); })) {
    std::fill(weights, weights + choice.experts, NAN);
    return;
  }
  int64_t order[Choice::kMostExperts];
  for (int64_t i = 0; i < choice.experts; ++i) order[i] = i;
  const auto before = [logits](int64_t a, int64_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  };
  std::partial_sort(order, order + choice.chosen, order + choice.experts, before);
  float powers[Choice::kMostExperts];
  const int64_t count = choice.normalise ? choice.chosen : choice.experts;
  for (int64_t i = 0; i < count; ++i) powers[i] = logits[choice.normalise ? order[i] : i];
  const float sum = Exponentials<V>(powers, count, logits[order[0]]);
  std::fill(weights, weights + choice.experts, 0.0f);
  for (int64_t i = 0; i < choice.chosen; ++i) {
    weights[order[i]] = powers[choice.normalise ? i : order[i]] / sum * choice.scale;
  }
}

}  // namespace realm

#endif  // CPU_KERNELS_ROUTE_H_
