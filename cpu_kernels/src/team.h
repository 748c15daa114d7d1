// Chunks of one call's work, shared between the calling thread and helpers on XLA's thread pool.
//
// XLA runs independent custom calls at the same time on the threads of its pool, so a call must never wait for a task
// that may not have started. Here the caller takes chunks itself until none is left and then waits only for chunks that
// a running helper has taken. A second caller that finds the team busy works alone.
#ifndef CPU_KERNELS_TEAM_H_
#define CPU_KERNELS_TEAM_H_

#include <atomic>
#include <cstdint>

namespace realm {

// Helpers stay after their last chunk, because the next call of a step follows within microseconds and waking a thread
// takes longer than most calls do.
class Team {
 public:
  using Work = void (*)(const void* context, uint32_t chunk);
  static constexpr uint32_t kMostChunks = 0xffff;

  // Runs work(context, i) once for each i < chunks, on the caller and up to `helpers` others; `schedule(task)` starts a
  // task on another thread.
  template <class Schedule>
  void Run(uint32_t chunks, int helpers, Work work, const void* context, Schedule&& schedule) {
    if (chunks < 2 || helpers < 1 || busy_.exchange(true, std::memory_order_acquire)) {
      for (uint32_t i = 0; i < chunks; ++i) work(context, i);
      return;
    }
    Publish(chunks, work, context);
    while (Enlist(helpers)) schedule([this] { Help(); });
    uint32_t own = 0;
    for (uint32_t i; Take(kFromFront, &i); ++own) work(context, i);
    WaitForHelpers(chunks - own);
    busy_.store(false, std::memory_order_release);
  }

 private:
  enum End { kFromFront, kFromBack };

  void Publish(uint32_t chunks, Work work, const void* context);
  bool Enlist(int helpers);
  bool Take(End end, uint32_t* chunk);
  void WaitForHelpers(uint32_t chunks) const;
  void Help();

  // | job 32 | end of what is left 16 | its begin 16 |: taking a chunk is one exchange, and it fails once the job is
  // another. Helpers add what they finished once they find nothing more. `work_` and `context_` belong to the job while
  // one of its taken chunks is unfinished.
  alignas(64) std::atomic<uint64_t> left_{0};
  alignas(64) std::atomic<uint32_t> finished_{0};
  alignas(64) std::atomic<int> enlisted_{0};
  alignas(64) std::atomic<bool> busy_{false};
  alignas(64) Work work_ = nullptr;
  const void* context_ = nullptr;
};

// Which of `count` places in memory the `taken`-th chunk is to work on. Helpers take chunks from the back; with the
// second half numbered backwards they too go up in memory, and find what was prefetched at the end of their last chunk.
constexpr int64_t PlaceOf(int64_t taken, int64_t count) {
  const int64_t half = count / 2;
  return taken < half ? taken : half + (count - 1 - taken);
}

}  // namespace realm

#endif  // CPU_KERNELS_TEAM_H_
