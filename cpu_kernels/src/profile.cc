// The counters behind profiling.py: calls and nanoseconds of each handler.
#include "profile.h"

#include <atomic>

#include "export.h"

namespace realm {
namespace {

struct Counter {
  std::atomic<int64_t> calls{0};
  std::atomic<int64_t> nanoseconds{0};
};

std::atomic<bool> profiling{false};
Counter counters[kHandlers];

}  // namespace

CallTimer::CallTimer(Handler handler) : handler_(handler), timed_(profiling.load(std::memory_order_relaxed)) {
  if (timed_) start_ = std::chrono::steady_clock::now();
}

CallTimer::~CallTimer() {
  if (!timed_) return;
  const auto elapsed = std::chrono::steady_clock::now() - start_;
  Counter& counter = counters[static_cast<int>(handler_)];
  counter.calls.fetch_add(1, std::memory_order_relaxed);
  counter.nanoseconds.fetch_add(std::chrono::duration_cast<std::chrono::nanoseconds>(elapsed).count(),
                                std::memory_order_relaxed);
}

}  // namespace realm

// Starts counting from zero.
REALM_EXPORT void realm_start_profile() {
  for (realm::Counter& counter : realm::counters) {
    counter.calls = 0;
    counter.nanoseconds = 0;
  }
  realm::profiling = true;
}

// Stops counting; out[2 i] and out[2 i + 1] are the calls and nanoseconds of handler i.
REALM_EXPORT void realm_stop_profile(int64_t* out) {
  realm::profiling = false;
  for (int i = 0; i < realm::kHandlers; ++i) {
    out[2 * i] = realm::counters[i].calls;
    out[2 * i + 1] = realm::counters[i].nanoseconds;
  }
}
