// Memory set to zeros without being touched, where the system allows it.
#ifndef CPU_KERNELS_ZERO_PAGES_H_
#define CPU_KERNELS_ZERO_PAGES_H_

#include <cstddef>

namespace realm {

// Sets `bytes` bytes of private memory, as allocators hand out, to zero. Whole pages go back to the system, which gives
// zeros in their place once they are touched: until then they take neither memory nor time.
void FillWithZeros(void* memory, size_t bytes);

}  // namespace realm

#endif  // CPU_KERNELS_ZERO_PAGES_H_
