// The largest of many floats and its place, written once over the vector operations `V` of an instruction set.
#ifndef CPU_KERNELS_LARGEST_H_
#define CPU_KERNELS_LARGEST_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels.h"
#include "macros.h"

namespace realm {

constexpr int64_t kSearched = 1024;  // floats that are searched again for the place, which lie in the first cache

// Raises `top` to the floats of x where they are larger, and makes `nan` NaN where x is; no infinity does.
template <class V>
REALM_INLINE void Raise(typename V::Floats x, typename V::Floats& top, typename V::Floats& nan) {
  top = V::Max(x, top);
  const typename V::Floats finite = V::Min(V::SplatFloat(std::numeric_limits<float>::max()), V::Abs(x));
  nan = V::Fma(finite, V::SplatFloat(0.0f), nan);
}

template <class V>
Largest FindLargest(const float* x, int64_t count) {
  constexpr float lowest = -std::numeric_limits<float>::infinity();
  Largest best{lowest, 0};
  for (int64_t first = 0; first < count; first += kSearched) {
    const int64_t end = std::min(count, first + kSearched);
    typename V::Floats tops[2] = {V::SplatFloat(lowest), V::SplatFloat(lowest)};
    typename V::Floats nans[2] = {V::SplatFloat(0.0f), V::SplatFloat(0.0f)};
    int64_t i = first;
    for (; i + 2 * kTileRows <= end; i += 2 * kTileRows) {
      Raise<V>(V::LoadFloats(x + i), tops[0], nans[0]);
      Raise<V>(V::LoadFloats(x + i + kTileRows), tops[1], nans[1]);
    }
    for (; i < end; i += kTileRows) {
      const int left = static_cast<int>(std::min<int64_t>(kTileRows, end - i));
      Raise<V>(V::KeepFirst(V::LoadSome(x + i, left), left, lowest), tops[0], nans[0]);
    }
    const float top = V::Largest(V::Max(tops[0], tops[1]));
    const float nan = V::Sum(V::Add(nans[0], nans[1]));
    if (std::isnan(nan)) {
      for (i = first; !std::isnan(x[i]);) ++i;
      return {x[i], i};
    }
    if (top > best.value) best = {top, first};
  }
  while (x[best.index] != best.value) ++best.index;
  return best;
}

}  // namespace realm

#endif  // CPU_KERNELS_LARGEST_H_
