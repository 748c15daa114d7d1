// What of a call is static, in one attribute: XLA looks every attribute up by its name in every call, in memory that a
// stream of weights has pushed out of the caches since the last one.
#ifndef CPU_KERNELS_SETTINGS_H_
#define CPU_KERNELS_SETTINGS_H_

#include <cstddef>
#include <cstdint>

#include "half.h"
#include "xla/ffi/api/ffi.h"

namespace realm {

// Takes the numbers one after the other, as settings() in native.py has put them; zeros once there are no more.
class Settings {
 public:
  explicit Settings(xla::ffi::Span<const int64_t> numbers) : numbers_(numbers) {}

  int64_t Int() { return next_ < numbers_.size() ? numbers_[next_++] : (++next_, 0); }
  float Float() { return FloatOfBits(static_cast<uint32_t>(Int())); }

  // Whether as many were taken as there are.
  bool complete() const { return next_ == numbers_.size(); }

 private:
  xla::ffi::Span<const int64_t> numbers_;
  size_t next_ = 0;
};

}  // namespace realm

#endif  // CPU_KERNELS_SETTINGS_H_
