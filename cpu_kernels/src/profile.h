// How long handlers run, added up while someone asks.
#ifndef CPU_KERNELS_PROFILE_H_
#define CPU_KERNELS_PROFILE_H_

#include <chrono>
#include <cstdint>

namespace realm {

// In the order of the names in profiling.py.
enum class Handler : int32_t {
  kProject,
  kProjectGated,
  kProjectAdd,
  kQuantizedMatmul,
  kPagedAttention,
  kRopeTable,
  kArgmax,
  kMixExperts,
  kRoute
};
constexpr int kHandlers = 9;

// Times the scope of a handler's call; one load and one branch while nobody asks.
class CallTimer {
 public:
  explicit CallTimer(Handler handler);
  ~CallTimer();
  CallTimer(const CallTimer&) = delete;
  CallTimer& operator=(const CallTimer&) = delete;

 private:
  Handler handler_;
  bool timed_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace realm

#endif  // CPU_KERNELS_PROFILE_H_
