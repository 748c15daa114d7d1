// What the running CPU wants of prefetches.
#ifndef CPU_KERNELS_PREFETCH_H_
#define CPU_KERNELS_PREFETCH_H_

namespace realm {

// Whether weights that are read once come faster by way of the second cache than past it.
bool StreamsThroughSecondCache();

}  // namespace realm

#endif  // CPU_KERNELS_PREFETCH_H_
