// The kernels for x86-64 with AVX2 and AVX-VNNI, which adds up products of bytes without 16 bits in between.
#include "macros.h"
#if defined(REALM_AVX_VNNI)

#include <immintrin.h>

#include <cstring>

#include "avx2.h"
#include "other_products.h"

namespace realm {
namespace {

struct AvxVnni : Avx2 {
  template <bool bytes>
  static REALM_INLINE Ints Start(int offset, int32_t sum) {
    return SplatInt(-offset * sum);
  }
  template <bool bytes>
  static REALM_INLINE Ints Dot(Ints sum, Codes codes, const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
    const __m256i lanes = _mm256_set1_epi32(four);
    return {_mm256_dpbusd_avx_epi32(sum.low, codes.low, lanes), _mm256_dpbusd_avx_epi32(sum.high, codes.high, lanes)};
  }
};

}  // namespace

const Kernels* AvxVnniKernels() {
  static const Kernels kernels = WithProductsOf<AvxVnni>(*Avx2Kernels());
  return &kernels;
}

}  // namespace realm

#endif  // defined(REALM_AVX_VNNI)
