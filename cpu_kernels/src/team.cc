// How the members of a team take chunks, wait and leave.
#include "team.h"

#include <chrono>
#include <thread>

#include "float_environment.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace realm {
namespace {

// Longer than the pauses inside a step, far shorter than a person notices.
constexpr std::chrono::microseconds kLinger{100};

constexpr int kPauses = 64;

void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

void Team::Publish(uint32_t chunks, Work work, const void* context) {
  work_ = work;
  context_ = context;
  finished_.store(0, std::memory_order_relaxed);
  const uint64_t job = (left_.load(std::memory_order_relaxed) >> 32) + 1;
  left_.store(job << 32 | static_cast<uint64_t>(chunks) << 16, std::memory_order_release);
}

bool Team::Enlist(int helpers) {
  int enlisted = enlisted_.load(std::memory_order_relaxed);
  while (enlisted < helpers) {
    if (enlisted_.compare_exchange_weak(enlisted, enlisted + 1, std::memory_order_relaxed)) return true;
  }
  return false;
}

bool Team::Take(End end, uint32_t* chunk) {
  uint64_t left = left_.load(std::memory_order_acquire);
  for (;;) {
    const auto front = static_cast<uint32_t>(left & 0xffff);
    const auto back = static_cast<uint32_t>(left >> 16 & 0xffff);
    if (front >= back) return false;
    const uint64_t next = end == kFromFront ? left + 1 : left - 0x10000;
    if (left_.compare_exchange_weak(left, next, std::memory_order_acq_rel, std::memory_order_acquire)) {
      *chunk = end == kFromFront ? front : back - 1;
      return true;
    }
  }
}

// A helper may be off its CPU in the middle of a chunk, so the wait gives way to it.
void Team::WaitForHelpers(uint32_t chunks) const {
  for (int spins = 0; finished_.load(std::memory_order_acquire) < chunks; ++spins) {
    if (spins % kPauses == kPauses - 1) {
      std::this_thread::yield();
    } else {
      Pause();
    }
  }
}

void Team::Help() {
  const FloatEnvironment environment;
  using Clock = std::chrono::steady_clock;
  Clock::time_point last = Clock::now();
  for (;;) {
    uint32_t finished = 0;
    for (uint32_t chunk; Take(kFromBack, &chunk); ++finished) work_(context_, chunk);
    if (finished > 0) {
      finished_.fetch_add(finished, std::memory_order_release);
      last = Clock::now();
    }
    for (int i = 0; i < kPauses / 4; ++i) Pause();
    if (Clock::now() - last > kLinger) break;
  }
  enlisted_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace realm
