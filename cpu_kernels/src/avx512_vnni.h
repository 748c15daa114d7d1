// The vector operations of AVX-512 VNNI: 16 rows of a tile are the 16 lanes of a register.
#ifndef CPU_KERNELS_AVX512_VNNI_H_
#define CPU_KERNELS_AVX512_VNNI_H_

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "macros.h"

namespace realm {
// Each file that includes this has a type of its own, so that what it instantiates stays inside it.
namespace {

struct Avx512Vnni {
  using Codes = __m512i;
  using Ints = __m512i;
  using Floats = __m512;
  static constexpr bool kMatrixUnit = false;
  static constexpr int kMaxHeight = 16;
  static constexpr int kFloatRegisters = 32;

  static REALM_INLINE __mmask16 First(int count) { return static_cast<__mmask16>((1u << count) - 1); }

  static REALM_INLINE Codes LoadCodes(const uint8_t* bytes) { return _mm512_loadu_si512(bytes); }
  static REALM_INLINE Codes LowNibbles(Codes codes) { return _mm512_and_si512(codes, _mm512_set1_epi8(15)); }
  static REALM_INLINE Codes HighNibbles(Codes codes) { return LowNibbles(_mm512_srli_epi16(codes, 4)); }

  // codes | (plane << shift & mask); a negative shift goes right.
  template <int mask, int shift>
  static REALM_INLINE Codes AddBits(Codes codes, Codes plane) {
    if constexpr (shift > 0) plane = _mm512_slli_epi16(plane, shift);
    if constexpr (shift < 0) plane = _mm512_srli_epi16(plane, -shift);
    constexpr int a_or_b_and_c = 0xf8;
    return _mm512_ternarylogic_epi32(codes, plane, _mm512_set1_epi8(mask), a_or_b_and_c);
  }

  // 16 bytes, and for each code below 16 the byte that it numbers.
  static REALM_INLINE Codes LoadTable(const uint8_t* bytes) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
  }
  static REALM_INLINE Codes Lookup(Codes table, Codes codes) { return _mm512_shuffle_epi8(table, codes); }

  template <int offset>
  static REALM_INLINE Codes SubtractFromCodes(Codes codes) {
    return offset == 0 ? codes : _mm512_sub_epi8(codes, _mm512_set1_epi8(static_cast<char>(offset)));
  }
  static REALM_INLINE void StoreCodes(uint8_t* out, Codes codes) { _mm512_storeu_si512(out, codes); }
  static REALM_INLINE Ints LoadInts(const int32_t* ints) { return _mm512_loadu_si512(ints); }
  static REALM_INLINE Ints SplatInt(int32_t value) { return _mm512_set1_epi32(value); }
  static REALM_INLINE Ints AddInts(Ints a, Ints b) { return _mm512_add_epi32(a, b); }

  template <bool bytes>
  static REALM_INLINE Ints Start(int offset, int32_t sum) {
    return offset == 0 ? _mm512_setzero_si512() : SplatInt(-offset * sum);
  }
  template <bool bytes>
  static REALM_INLINE Ints Dot(Ints sum, Codes codes, const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
    return _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(four));
  }

  static REALM_INLINE Floats SplatFloat(float value) { return _mm512_set1_ps(value); }
  static REALM_INLINE Floats LoadFloats(const float* x) { return _mm512_loadu_ps(x); }
  static REALM_INLINE Floats LoadSome(const float* x, int count) { return _mm512_maskz_loadu_ps(First(count), x); }
  static REALM_INLINE void StoreSome(float* out, Floats floats, int count) {
    _mm512_mask_storeu_ps(out, First(count), floats);
  }
  static REALM_INLINE Floats KeepFirst(Floats floats, int count, float fill) {
    return _mm512_mask_blend_ps(First(count), SplatFloat(fill), floats);
  }
  static REALM_INLINE Floats Add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static REALM_INLINE Floats Sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  static REALM_INLINE Floats Div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
  static REALM_INLINE Floats Max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
  static REALM_INLINE Floats Min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
  static REALM_INLINE Floats Abs(Floats a) { return _mm512_abs_ps(a); }
  static REALM_INLINE Floats Round(Floats a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static REALM_INLINE Floats ScaleByPowerOfTwo(Floats a, Floats exponent) {
    const __m512i shifted = _mm512_slli_epi32(_mm512_cvtps_epi32(exponent), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), shifted));
  }
  static REALM_INLINE Floats WhereNegative(Floats sign, Floats a, Floats b) {
    const __mmask16 negative = _mm512_cmplt_epi32_mask(_mm512_castps_si512(sign), _mm512_setzero_si512());
    return _mm512_mask_blend_ps(negative, b, a);
  }
  static REALM_INLINE float Sum(Floats floats) {
    const __m512 eight = _mm512_add_ps(floats, _mm512_shuffle_f32x4(floats, floats, _MM_SHUFFLE(1, 0, 3, 2)));
    const __m512 four = _mm512_add_ps(eight, _mm512_shuffle_f32x4(eight, eight, _MM_SHUFFLE(2, 3, 0, 1)));
    const __m512 two = _mm512_add_ps(four, _mm512_permute_ps(four, _MM_SHUFFLE(1, 0, 3, 2)));
    return _mm512_cvtss_f32(_mm512_add_ps(two, _mm512_permute_ps(two, _MM_SHUFFLE(2, 3, 0, 1))));
  }
  static REALM_INLINE float Largest(Floats floats) { return _mm512_reduce_max_ps(floats); }
  static REALM_INLINE Floats ToFloats(Ints ints) { return _mm512_cvtepi32_ps(ints); }
  static REALM_INLINE Floats Mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static REALM_INLINE Floats Fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static REALM_INLINE Floats LoadHalves(const uint8_t* halves) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
  }
  static REALM_INLINE Floats SplatHalf(const uint8_t* half) {
    int16_t bits;
    std::memcpy(&bits, half, sizeof bits);
    return _mm512_cvtph_ps(_mm256_set1_epi16(bits));
  }
  static REALM_INLINE void StoreHalves(uint8_t* out, Floats floats) {
    const __m256i halves = _mm512_cvtps_ph(floats, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), halves);
  }
  static REALM_INLINE Floats LoadBfloats(const uint8_t* bfloats) {
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bfloats));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
  }
  static REALM_INLINE Floats LoadSignedBytes(const uint8_t* bytes) {
    return ToFloats(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes))));
  }
  // Halves whose bits are the bytes shifted left by 7.
  static REALM_INLINE Floats LoadShiftedHalves(const uint8_t* bytes) {
    const __m256i words = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    return _mm512_cvtph_ps(_mm256_slli_epi16(words, 7));
  }
  static REALM_INLINE void StoreFloats(float* out, Floats floats) { _mm512_storeu_ps(out, floats); }

  static REALM_INLINE uint32_t LargestMagnitude(Floats a, Floats b) {
    const __m512i magnitude_a = _mm512_castps_si512(Abs(a));
    const __m512i magnitude_b = _mm512_castps_si512(Abs(b));
    return _mm512_reduce_max_epu32(_mm512_max_epu32(magnitude_a, magnitude_b));
  }
  static REALM_INLINE int32_t RoundAndStore(Floats x, float factor, int8_t* codes) {
    const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(factor)));
    const __m128i bytes = _mm512_cvtsepi32_epi8(rounded);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), bytes);
    const __m128i fours = _mm_dpbusd_epi32(_mm_setzero_si128(), _mm_set1_epi8(1), bytes);
    const __m128i twos = _mm_add_epi32(fours, _mm_shuffle_epi32(fours, _MM_SHUFFLE(1, 0, 3, 2)));
    return _mm_cvtsi128_si32(_mm_add_epi32(twos, _mm_shuffle_epi32(twos, _MM_SHUFFLE(2, 3, 0, 1))));
  }
};

}  // namespace
}  // namespace realm

#endif  // CPU_KERNELS_AVX512_VNNI_H_
