// The vector operations of AVX2, FMA and F16C: 16 rows of a tile are two registers of eight lanes.
#ifndef CPU_KERNELS_AVX2_H_
#define CPU_KERNELS_AVX2_H_

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "macros.h"
#include "tiles.h"

namespace realm {
// Each file that includes this has a type of its own, so that what it instantiates stays inside it.
namespace {

struct Avx2 {
  struct Codes {
    __m256i low, high;
  };
  using Ints = Codes;
  struct Floats {
    __m256 low, high;
  };
  static constexpr bool kMatrixUnit = false;
  static constexpr int kMaxHeight = 4;
  static constexpr int kFloatRegisters = 8;

  static REALM_INLINE __m256i Load(const void* bytes) { return _mm256_loadu_si256(static_cast<const __m256i*>(bytes)); }
  static REALM_INLINE Codes And(Codes codes, int mask) {
    const __m256i lanes = _mm256_set1_epi8(static_cast<char>(mask));
    return {_mm256_and_si256(codes.low, lanes), _mm256_and_si256(codes.high, lanes)};
  }

  static REALM_INLINE Codes LoadCodes(const uint8_t* bytes) { return {Load(bytes), Load(bytes + 32)}; }
  static REALM_INLINE Codes LowNibbles(Codes codes) { return And(codes, 15); }
  static REALM_INLINE Codes HighNibbles(Codes codes) {
    return And({_mm256_srli_epi16(codes.low, 4), _mm256_srli_epi16(codes.high, 4)}, 15);
  }

  // codes | (plane << shift & mask); a negative shift goes right.
  template <int mask, int shift>
  static REALM_INLINE Codes AddBits(Codes codes, Codes plane) {
    if constexpr (shift > 0) plane = {_mm256_slli_epi16(plane.low, shift), _mm256_slli_epi16(plane.high, shift)};
    if constexpr (shift < 0) plane = {_mm256_srli_epi16(plane.low, -shift), _mm256_srli_epi16(plane.high, -shift)};
    plane = And(plane, mask);
    return {_mm256_or_si256(codes.low, plane.low), _mm256_or_si256(codes.high, plane.high)};
  }

  // 16 bytes, and for each code below 16 the byte that it numbers.
  static REALM_INLINE Codes LoadTable(const uint8_t* bytes) {
    const __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    return {twice, twice};
  }
  static REALM_INLINE Codes Lookup(Codes table, Codes codes) {
    return {_mm256_shuffle_epi8(table.low, codes.low), _mm256_shuffle_epi8(table.high, codes.high)};
  }

  static REALM_INLINE Ints SplatInt(int32_t value) {
    const __m256i lanes = _mm256_set1_epi32(value);
    return {lanes, lanes};
  }
  static REALM_INLINE Ints AddInts(Ints a, Ints b) {
    return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
  }

  // Products of bytes are taken with signs, so that their offset never enters.
  template <bool bytes>
  static REALM_INLINE Ints Start(int offset, int32_t sum) {
    return SplatInt(bytes ? 0 : -offset * sum);
  }
  template <bool bytes>
  static REALM_INLINE Ints Dot(Ints sum, Codes codes, const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
    const __m256i lanes = _mm256_set1_epi32(four);
    return {DotHalf<bytes>(sum.low, codes.low, lanes), DotHalf<bytes>(sum.high, codes.high, lanes)};
  }
  // Pairs of products add up in 16 bits: at most 2 * 128 * 127 with signs and 2 * 124 * 127 without, so none saturates.
  template <bool bytes>
  static REALM_INLINE __m256i DotHalf(__m256i sum, __m256i codes, __m256i x) {
    if constexpr (bytes) {
      const __m256i weights = _mm256_xor_si256(codes, _mm256_set1_epi8(static_cast<char>(0x80)));
      x = _mm256_sign_epi8(x, weights);
      codes = _mm256_abs_epi8(weights);
    }
    const __m256i pairs = _mm256_maddubs_epi16(codes, x);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }

  static REALM_INLINE Floats SplatFloat(float value) {
    const __m256 lanes = _mm256_set1_ps(value);
    return {lanes, lanes};
  }
  static REALM_INLINE Floats LoadFloats(const float* x) { return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }
  static REALM_INLINE Floats LoadSome(const float* x, int count) {
    float lanes[kTileRows] = {};
    std::memcpy(lanes, x, static_cast<size_t>(count) * sizeof(float));
    return LoadFloats(lanes);
  }
  static REALM_INLINE void StoreSome(float* out, Floats floats, int count) {
    float lanes[kTileRows];
    StoreFloats(lanes, floats);
    std::memcpy(out, lanes, static_cast<size_t>(count) * sizeof(float));
  }
  static REALM_INLINE Floats KeepFirst(Floats floats, int count, float fill) {
    const __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i high = _mm256_add_epi32(low, _mm256_set1_epi32(8));
    const __m256i counts = _mm256_set1_epi32(count);
    const __m256 fills = _mm256_set1_ps(fill);
    return {_mm256_blendv_ps(fills, floats.low, _mm256_castsi256_ps(_mm256_cmpgt_epi32(counts, low))),
            _mm256_blendv_ps(fills, floats.high, _mm256_castsi256_ps(_mm256_cmpgt_epi32(counts, high)))};
  }
  static REALM_INLINE Floats Add(Floats a, Floats b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
  }
  static REALM_INLINE Floats Sub(Floats a, Floats b) {
    return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
  }
  static REALM_INLINE Floats Div(Floats a, Floats b) {
    return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
  }
  static REALM_INLINE Floats Max(Floats a, Floats b) {
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
  }
  static REALM_INLINE Floats Min(Floats a, Floats b) {
    return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
  }
  static REALM_INLINE Floats Abs(Floats a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
  }
  static REALM_INLINE Floats Round(Floats a) {
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.low, nearest), _mm256_round_ps(a.high, nearest)};
  }
  static REALM_INLINE __m256 ScaleHalf(__m256 a, __m256 exponent) {
    const __m256i shifted = _mm256_slli_epi32(_mm256_cvtps_epi32(exponent), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), shifted));
  }
  static REALM_INLINE Floats ScaleByPowerOfTwo(Floats a, Floats exponent) {
    return {ScaleHalf(a.low, exponent.low), ScaleHalf(a.high, exponent.high)};
  }
  static REALM_INLINE Floats WhereNegative(Floats sign, Floats a, Floats b) {
    return {_mm256_blendv_ps(b.low, a.low, sign.low), _mm256_blendv_ps(b.high, a.high, sign.high)};
  }
  static REALM_INLINE float Sum(Floats floats) {
    const __m256 eight = _mm256_add_ps(floats.low, floats.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, _MM_SHUFFLE(1, 1, 1, 1))));
  }
  static REALM_INLINE float Largest(Floats floats) {
    const __m256 eight = _mm256_max_ps(floats.low, floats.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, _MM_SHUFFLE(1, 1, 1, 1))));
  }
  static REALM_INLINE Floats ToFloats(Ints ints) {
    return {_mm256_cvtepi32_ps(ints.low), _mm256_cvtepi32_ps(ints.high)};
  }
  static REALM_INLINE Floats Mul(Floats a, Floats b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
  }
  static REALM_INLINE Floats Fma(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static REALM_INLINE __m256 LoadEightHalves(const uint8_t* halves) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
  }
  static REALM_INLINE Floats LoadHalves(const uint8_t* halves) {
    return {LoadEightHalves(halves), LoadEightHalves(halves + 16)};
  }
  static REALM_INLINE Floats SplatHalf(const uint8_t* half) {
    int16_t bits;
    std::memcpy(&bits, half, sizeof bits);
    const __m256 lanes = _mm256_cvtph_ps(_mm_set1_epi16(bits));
    return {lanes, lanes};
  }
  static REALM_INLINE void StoreHalves(uint8_t* out, Floats floats) {
    auto* halves = reinterpret_cast<__m128i*>(out);
    _mm_storeu_si128(halves, _mm256_cvtps_ph(floats.low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128(halves + 1, _mm256_cvtps_ph(floats.high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static REALM_INLINE __m256 LoadEightBfloats(const uint8_t* bfloats) {
    const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bfloats));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(high), 16));
  }
  static REALM_INLINE Floats LoadBfloats(const uint8_t* bfloats) {
    return {LoadEightBfloats(bfloats), LoadEightBfloats(bfloats + 16)};
  }
  static REALM_INLINE Floats LoadSignedBytes(const uint8_t* bytes) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
    return ToFloats({_mm256_cvtepi8_epi32(codes), _mm256_cvtepi8_epi32(_mm_srli_si128(codes, 8))});
  }
  // Halves whose bits are the bytes shifted left by 7.
  static REALM_INLINE Floats LoadShiftedHalves(const uint8_t* bytes) {
    const __m256i words =
        _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes))), 7);
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(words)), _mm256_cvtph_ps(_mm256_extracti128_si256(words, 1))};
  }
  static REALM_INLINE void StoreFloats(float* out, Floats floats) {
    _mm256_storeu_ps(out, floats.low);
    _mm256_storeu_ps(out + 8, floats.high);
  }

  static REALM_INLINE uint32_t LargestMagnitude(Floats a, Floats b) {
    const auto magnitude = [](__m256 x) {
      return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
    };
    const __m256i low = _mm256_max_epi32(magnitude(a.low), magnitude(b.low));
    const __m256i high = _mm256_max_epi32(magnitude(a.high), magnitude(b.high));
    const __m256i largest = _mm256_max_epi32(low, high);
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, _MM_SHUFFLE(1, 0, 3, 2)));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, _MM_SHUFFLE(2, 3, 0, 1)));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(four));
  }
  static REALM_INLINE int32_t RoundAndStore(Floats x, float factor, int8_t* codes) {
    const __m256 factors = _mm256_set1_ps(factor);
    const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(x.low, factors));
    const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(x.high, factors));
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), _MM_SHUFFLE(3, 1, 2, 0));
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), bytes);
    const __m256i eight = _mm256_add_epi32(a, b);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, _MM_SHUFFLE(1, 0, 3, 2)));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, _MM_SHUFFLE(2, 3, 0, 1)));
    return _mm_cvtsi128_si32(four);
  }
};

}  // namespace
}  // namespace realm

#endif  // CPU_KERNELS_AVX2_H_
