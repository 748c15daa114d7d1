// Loop unrolling and forced inlining, spelt for either compiler.
#ifndef CPU_KERNELS_MACROS_H_
#define CPU_KERNELS_MACROS_H_

#if defined(__clang__)
#define REALM_UNROLL _Pragma("unroll")
#else
#define REALM_UNROLL _Pragma("GCC unroll 16")
#endif
#define REALM_INLINE inline __attribute__((always_inline))

#endif  // CPU_KERNELS_MACROS_H_
