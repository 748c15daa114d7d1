// Reading memory and nothing else: the bandwidth that products with weights are compared with.
#include <cstdint>

#include "export.h"

namespace {

constexpr int64_t kLine = 8;        // words
constexpr int64_t kAhead = 8 * 64;  // words

}  // namespace

// The exclusive or of `count` 64-bit words.
REALM_EXPORT uint64_t realm_read_memory(const uint64_t* words, int64_t count) {
  uint64_t lanes[4 * kLine] = {};
  int64_t i = 0;
  for (; i + 4 * kLine <= count; i += 4 * kLine) {
    for (int64_t line = 0; line < 4; ++line) __builtin_prefetch(words + i + kAhead + kLine * line);
    for (int64_t lane = 0; lane < 4 * kLine; ++lane) lanes[lane] ^= words[i + lane];
  }
  uint64_t all = 0;
  for (uint64_t lane : lanes) all ^= lane;
  for (; i < count; ++i) all ^= words[i];
  return all;
}
