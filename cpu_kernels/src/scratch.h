// Memory that a thread keeps from one call to the next.
#ifndef CPU_KERNELS_SCRATCH_H_
#define CPU_KERNELS_SCRATCH_H_

#include <cstddef>
#include <cstdint>
#include <memory>

namespace realm {

class Scratch {
 public:
  // At least `bytes` bytes, aligned to 64; what they hold is whatever the last user left.
  uint8_t* AtLeast(size_t bytes) {
    if (bytes > size_) {
      memory_ = std::make_unique<uint8_t[]>(bytes + kAlignment);
      size_ = bytes;
    }
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    return memory_.get() + (kAlignment - address % kAlignment) % kAlignment;
  }

 private:
  static constexpr size_t kAlignment = 64;
  std::unique_ptr<uint8_t[]> memory_;
  size_t size_ = 0;
};

}  // namespace realm

#endif  // CPU_KERNELS_SCRATCH_H_
