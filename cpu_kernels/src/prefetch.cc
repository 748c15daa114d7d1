// Which CPU runs, as far as prefetches are concerned.
#include "prefetch.h"

namespace realm {

// On Zen 4 decoding a token of either test model was a sixth faster so, and attention to 160 positions took two thirds
// of the time; on Zen 5 the products of one row were slower. An Intel Xeon with AMX reads weights 2.6 times as fast so.
// Others were not measured, nor was Zen 3, whose family is that of Zen 4.
bool StreamsThroughSecondCache() {
#if defined(__x86_64__)
  static const bool streams = __builtin_cpu_is("amdfam19h") != 0 || __builtin_cpu_is("intel") != 0;
  return streams;
#else
  return false;
#endif
}

}  // namespace realm
