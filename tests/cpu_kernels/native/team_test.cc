// A team whose callers and helpers are threads outside XLA: every chunk runs once, and no call waits for ever.
#include "team.h"

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "check.h"
#include "float_environment.h"

namespace realm::test {
namespace {

// Four threads that run the tasks given to them, all of them before it ends.
class Threads {
 public:
  Threads() {
    for (int i = 0; i < 4; ++i) threads_.emplace_back([this] { Serve(); });
  }
  ~Threads() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  void Start(std::function<void()> task) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    changed_.notify_one();
  }

 private:
  void Serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return closed_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      const std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  bool closed_ = false;
  std::vector<std::thread> threads_;
};

// A job that counts how often each of its chunks has run, in plain memory: the team alone must order what its members
// write before what the caller reads.
struct Job {
  explicit Job(uint32_t chunks) : runs(chunks) {}
  mutable std::vector<int> runs;

  static void Work(const void* context, uint32_t chunk) { ++static_cast<const Job*>(context)->runs[chunk]; }
  bool EachOnce() const {
    return std::all_of(runs.begin(), runs.end(), [](int count) { return count == 1; });
  }
};

REALM_TEST(EveryChunkRunsOnce) {
  Team team;
  Threads helpers;
  const auto schedule = [&](auto task) { helpers.Start(task); };
  for (uint32_t chunks : {0u, 1u, 2u, 3u, 64u, Team::kMostChunks}) {
    for (int count : {0, 1, 3}) {
      Job job(chunks);
      team.Run(chunks, count, Job::Work, &job, schedule);
      Check(job.EachOnce(), chunks, " chunks with ", count, " helpers");
    }
  }
}

// The caller's chunk ends once the helper is inside the other one, which then takes long.
struct SlowHelp {
  mutable std::atomic<bool> started{false}, ended{false};

  static void Work(const void* context, uint32_t chunk) {
    const auto* job = static_cast<const SlowHelp*>(context);
    if (chunk == 0) {
      while (!job->started) std::this_thread::yield();
      return;
    }
    job->started = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    job->ended = true;
  }
};

REALM_TEST(TheCallerWaitsForAChunkThatAHelperHas) {
  Team team;
  Threads helpers;
  for (int i = 0; i < 3; ++i) {
    SlowHelp job;
    team.Run(2, 1, SlowHelp::Work, &job, [&](auto task) { helpers.Start(task); });
    Check(job.ended, "the call ended before its chunk");
  }
}

// Callers find the team busy, helpers come late and stay over several jobs, and each job's memory ends with its call.
REALM_TEST(CallersInContention) {
  constexpr int callers = 4, jobs = 300;
  Team team;
  Threads helpers;
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int caller = 0; caller < callers; ++caller) {
    threads.emplace_back([&, caller] {
      for (int i = 0; i < jobs; ++i) {
        const auto chunks = static_cast<uint32_t>(2 + (7 * i + caller) % 61);
        Job job(chunks);
        team.Run(chunks, 2, Job::Work, &job, [&](auto task) { helpers.Start(task); });
        if (!job.EachOnce()) wrong.fetch_add(1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  Check(wrong == 0, wrong.load(), " of ", callers * jobs, " jobs did not run each chunk once");
}

// A pool with no free thread starts a task after the call that scheduled it is over.
REALM_TEST(NoCallWaitsForATaskThatHasNotStarted) {
  Team team;
  std::vector<std::function<void()>> tasks;
  for (int i = 0; i < 3; ++i) {
    Job job(50);
    team.Run(50, 2, Job::Work, &job, [&](auto task) { tasks.emplace_back(task); });
    Check(job.EachOnce(), "job ", i, " without its helpers");
  }
  Check(tasks.size() == 2, tasks.size(), " tasks for 2 helpers that never started");
  for (const auto& task : tasks) task();  // they find nothing to do, and leave
  Job job(50);
  team.Run(50, 2, Job::Work, &job, [&](auto task) { tasks.emplace_back(task); });
  Check(job.EachOnce() && tasks.size() == 4, "after the helpers left there are ", tasks.size(), " tasks");
}

// Every thread of the pool runs a call, whose helper would need one of them.
REALM_TEST(CallsOnThePoolThatHelps) {
  Team teams[4];
  std::atomic<int> right{0};
  {
    Threads pool;
    for (Team& team : teams) {
      pool.Start([&] {
        Job job(20);
        team.Run(20, 1, Job::Work, &job, [&](auto task) { pool.Start(task); });
        if (job.EachOnce()) right.fetch_add(1);
      });
    }
  }
  Check(right == 4, right.load(), " of 4 calls ran each chunk once");
}

REALM_TEST(TheFloatEnvironmentIsSetAndPutBack) {
  volatile float one = 1.0f, tiny = 0x1p-30f;
  std::fesetround(FE_UPWARD);
  {
    const FloatEnvironment environment;
    Check(one + tiny == 1.0f, "rounding inside is not to nearest");
  }
  Check(one + tiny > 1.0f, "rounding was not put back");
  std::fesetround(FE_TONEAREST);
}

}  // namespace
}  // namespace realm::test
