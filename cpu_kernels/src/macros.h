// Which optional instruction sets a build holds, and loop unrolling and inlining spelt for either compiler.
#ifndef CPU_KERNELS_MACROS_H_
#define CPU_KERNELS_MACROS_H_

// Each set's file may be compiled for more than the baseline; REALM_PORTABLE leaves them all out.
#if !defined(REALM_PORTABLE)
#if defined(__x86_64__)
#define REALM_AVX 1
#elif defined(__aarch64__)
#define REALM_NEON 1
#endif
#endif

#if defined(__clang__)
#define REALM_UNROLL _Pragma("unroll")
#else
#define REALM_UNROLL _Pragma("GCC unroll 16")
#endif
#define REALM_INLINE inline __attribute__((always_inline))

#endif  // CPU_KERNELS_MACROS_H_
