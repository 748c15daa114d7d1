// Where what will be read soon is prefetched to.
#ifndef CPU_KERNELS_PREFETCH_H_
#define CPU_KERNELS_PREFETCH_H_

#include <cstddef>
#include <cstdint>
#include <utility>

#include "macros.h"

namespace realm {

// As __builtin_prefetch numbers it. kOnce: past the second cache, so that a stream of weights does not push out what
// XLA keeps there for its next calls: on Zen 5 it takes half as long between kernels then. kKeep: into every cache.
// kSecond: into the second cache, to which more lines can be on their way at a time.
enum Locality { kOnce = 0, kSecond = 2, kKeep = 3 };

// Whether streams from memory are best prefetched to the second cache on this CPU.
bool StreamsThroughSecondCache();

template <Locality locality>
REALM_INLINE void PrefetchLine(const uint8_t* line) {
  __builtin_prefetch(line, 0, locality);
}

template <Locality locality, size_t... line>
REALM_INLINE void PrefetchLines(const uint8_t* first, std::index_sequence<line...>) {
  (PrefetchLine<locality>(first + 64 * line), ...);
}

}  // namespace realm

#endif  // CPU_KERNELS_PREFETCH_H_
