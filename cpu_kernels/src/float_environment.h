// Rounding and subnormals as IEEE 754 has them, for a scope: XLA flushes subnormals on some of its threads only.
#ifndef CPU_KERNELS_FLOAT_ENVIRONMENT_H_
#define CPU_KERNELS_FLOAT_ENVIRONMENT_H_

#if defined(__x86_64__)
#include <xmmintrin.h>
#else
#include <cfenv>
#endif

namespace realm {

class FloatEnvironment {
 public:
#if defined(__x86_64__)
  FloatEnvironment() : before_(_mm_getcsr()) { _mm_setcsr(kDefault); }
  ~FloatEnvironment() { _mm_setcsr(before_); }
#else
  FloatEnvironment() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~FloatEnvironment() { std::fesetenv(&before_); }
#endif
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr unsigned kDefault = 0x1f80;  // MXCSR after a reset: all exceptions masked
  unsigned before_;
#else
  std::fenv_t before_;
#endif
};

}  // namespace realm

#endif  // CPU_KERNELS_FLOAT_ENVIRONMENT_H_
