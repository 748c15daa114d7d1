// The kernels for aarch64 with the dot product extension: 16 rows of a tile are four registers of four lanes.
#include "macros.h"
#if defined(REALM_NEON)

#include <arm_neon.h>

#include "kernel_templates.h"

namespace realm {
namespace {

constexpr int kQuarters = 4;

struct NeonDotprod {
  struct Codes {
    uint8x16_t quarters[kQuarters];
  };
  struct Ints {
    int32x4_t quarters[kQuarters];
  };
  struct Floats {
    float32x4_t quarters[kQuarters];
  };
  static constexpr bool kMatrixUnit = false;
  static constexpr int kMaxHeight = 4;
  static constexpr int kFloatRegisters = 8;

  template <class Result, class Operation>
  static REALM_INLINE Result Each(Operation operation) {
    Result result;
    REALM_UNROLL
    for (int i = 0; i < kQuarters; ++i) result.quarters[i] = operation(i);
    return result;
  }
  static REALM_INLINE uint32x4_t LanesFrom(int quarter) {
    const uint32x4_t first = {0, 1, 2, 3};
    return vaddq_u32(first, vdupq_n_u32(4 * static_cast<uint32_t>(quarter)));
  }

  static REALM_INLINE Codes LoadCodes(const uint8_t* bytes) {
    return Each<Codes>([&](int i) { return vld1q_u8(bytes + 16 * i); });
  }
  static REALM_INLINE Codes LowNibbles(Codes codes) {
    return Each<Codes>([&](int i) { return vandq_u8(codes.quarters[i], vdupq_n_u8(15)); });
  }
  static REALM_INLINE Codes HighNibbles(Codes codes) {
    return Each<Codes>([&](int i) { return vshrq_n_u8(codes.quarters[i], 4); });
  }

  // codes | (plane << shift & mask); a negative shift goes right.
  template <int mask, int shift>
  static REALM_INLINE Codes AddBits(Codes codes, Codes plane) {
    return Each<Codes>([&](int i) {
      const uint8x16_t moved = vshlq_u8(plane.quarters[i], vdupq_n_s8(shift));
      return vorrq_u8(codes.quarters[i], vandq_u8(moved, vdupq_n_u8(mask)));
    });
  }

  // 16 bytes, and for each code below 16 the byte that it numbers.
  static REALM_INLINE Codes LoadTable(const uint8_t* bytes) {
    return Each<Codes>([&](int) { return vld1q_u8(bytes); });
  }
  static REALM_INLINE Codes Lookup(Codes table, Codes codes) {
    return Each<Codes>([&](int i) { return vqtbl1q_u8(table.quarters[i], codes.quarters[i]); });
  }

  static REALM_INLINE Ints SplatInt(int32_t value) {
    return Each<Ints>([&](int) { return vdupq_n_s32(value); });
  }
  static REALM_INLINE Ints AddInts(Ints a, Ints b) {
    return Each<Ints>([&](int i) { return vaddq_s32(a.quarters[i], b.quarters[i]); });
  }

  // The dot product takes both sides with signs: bytes shed their offset here, every other code is below 128.
  template <bool bytes>
  static REALM_INLINE Ints Start(int offset, int32_t sum) {
    return SplatInt(bytes ? 0 : -offset * sum);
  }
  template <bool bytes>
  static REALM_INLINE Ints Dot(Ints sum, Codes codes, const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
    const int8x16_t lanes = vreinterpretq_s8_s32(vdupq_n_s32(four));
    return Each<Ints>([&](int i) {
      const uint8x16_t weights = bytes ? veorq_u8(codes.quarters[i], vdupq_n_u8(0x80)) : codes.quarters[i];
      return vdotq_s32(sum.quarters[i], vreinterpretq_s8_u8(weights), lanes);
    });
  }

  static REALM_INLINE Floats SplatFloat(float value) {
    return Each<Floats>([&](int) { return vdupq_n_f32(value); });
  }
  static REALM_INLINE Floats LoadFloats(const float* x) {
    return Each<Floats>([&](int i) { return vld1q_f32(x + 4 * i); });
  }
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
    return Each<Floats>([&](int i) {
      const uint32x4_t kept = vcltq_u32(LanesFrom(i), vdupq_n_u32(static_cast<uint32_t>(count)));
      return vbslq_f32(kept, floats.quarters[i], vdupq_n_f32(fill));
    });
  }
  static REALM_INLINE Floats Add(Floats a, Floats b) {
    return Each<Floats>([&](int i) { return vaddq_f32(a.quarters[i], b.quarters[i]); });
  }
  static REALM_INLINE Floats Sub(Floats a, Floats b) {
    return Each<Floats>([&](int i) { return vsubq_f32(a.quarters[i], b.quarters[i]); });
  }
  static REALM_INLINE Floats Div(Floats a, Floats b) {
    return Each<Floats>([&](int i) { return vdivq_f32(a.quarters[i], b.quarters[i]); });
  }
  // The instructions vmaxq and vminq would return NaN where either is; the other sets return the second.
  static REALM_INLINE Floats Max(Floats a, Floats b) {
    return Each<Floats>(
        [&](int i) { return vbslq_f32(vcgtq_f32(a.quarters[i], b.quarters[i]), a.quarters[i], b.quarters[i]); });
  }
  static REALM_INLINE Floats Min(Floats a, Floats b) {
    return Each<Floats>(
        [&](int i) { return vbslq_f32(vcltq_f32(a.quarters[i], b.quarters[i]), a.quarters[i], b.quarters[i]); });
  }
  static REALM_INLINE Floats Abs(Floats a) {
    return Each<Floats>([&](int i) { return vabsq_f32(a.quarters[i]); });
  }
  static REALM_INLINE Floats Round(Floats a) {
    return Each<Floats>([&](int i) { return vrndnq_f32(a.quarters[i]); });
  }
  static REALM_INLINE Floats ScaleByPowerOfTwo(Floats a, Floats exponent) {
    return Each<Floats>([&](int i) {
      const int32x4_t shifted = vshlq_n_s32(vcvtnq_s32_f32(exponent.quarters[i]), 23);
      return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a.quarters[i]), shifted));
    });
  }
  static REALM_INLINE Floats WhereNegative(Floats sign, Floats a, Floats b) {
    return Each<Floats>([&](int i) {
      const uint32x4_t negative = vcltzq_s32(vreinterpretq_s32_f32(sign.quarters[i]));
      return vbslq_f32(negative, a.quarters[i], b.quarters[i]);
    });
  }
  static REALM_INLINE float Sum(Floats floats) {
    const float32x4_t low = vaddq_f32(floats.quarters[0], floats.quarters[2]);
    const float32x4_t high = vaddq_f32(floats.quarters[1], floats.quarters[3]);
    const float32x4_t four = vaddq_f32(low, high);
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
  }
  static REALM_INLINE float Largest(Floats floats) {
    const float32x4_t low = vmaxq_f32(floats.quarters[0], floats.quarters[2]);
    const float32x4_t high = vmaxq_f32(floats.quarters[1], floats.quarters[3]);
    return vmaxvq_f32(vmaxq_f32(low, high));
  }
  static REALM_INLINE Floats ToFloats(Ints ints) {
    return Each<Floats>([&](int i) { return vcvtq_f32_s32(ints.quarters[i]); });
  }
  static REALM_INLINE Floats Mul(Floats a, Floats b) {
    return Each<Floats>([&](int i) { return vmulq_f32(a.quarters[i], b.quarters[i]); });
  }
  static REALM_INLINE Floats Fma(Floats a, Floats b, Floats c) {
    return Each<Floats>([&](int i) { return vfmaq_f32(c.quarters[i], a.quarters[i], b.quarters[i]); });
  }
  static REALM_INLINE Floats LoadHalves(const uint8_t* halves) {
    return Each<Floats>([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(halves + 8 * i))); });
  }
  static REALM_INLINE Floats SplatHalf(const uint8_t* half) {
    uint16_t bits;
    std::memcpy(&bits, half, sizeof bits);
    const float32x4_t lanes = vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits)));
    return Each<Floats>([&](int) { return lanes; });
  }
  static REALM_INLINE void StoreHalves(uint8_t* out, Floats floats) {
    REALM_UNROLL
    for (int i = 0; i < kQuarters; ++i) vst1_u8(out + 8 * i, vreinterpret_u8_f16(vcvt_f16_f32(floats.quarters[i])));
  }
  static REALM_INLINE Floats LoadBfloats(const uint8_t* bfloats) {
    return Each<Floats>([&](int i) {
      const uint16x4_t high = vreinterpret_u16_u8(vld1_u8(bfloats + 8 * i));
      return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(high), 16));
    });
  }
  static REALM_INLINE Floats LoadSignedBytes(const uint8_t* bytes) {
    const int8x16_t codes = vreinterpretq_s8_u8(vld1q_u8(bytes));
    const int16x8_t low = vmovl_s8(vget_low_s8(codes));
    const int16x8_t high = vmovl_s8(vget_high_s8(codes));
    return ToFloats({{vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)),
                      vmovl_s16(vget_high_s16(high))}});
  }
  // Halves whose bits are the bytes shifted left by 7.
  static REALM_INLINE Floats LoadShiftedHalves(const uint8_t* bytes) {
    const uint8x16_t all = vld1q_u8(bytes);
    const uint16x8_t low = vshll_n_u8(vget_low_u8(all), 7);
    const uint16x8_t high = vshll_n_u8(vget_high_u8(all), 7);
    const auto floats = [](uint16x4_t halves) { return vcvt_f32_f16(vreinterpret_f16_u16(halves)); };
    return {{floats(vget_low_u16(low)), floats(vget_high_u16(low)), floats(vget_low_u16(high)),
             floats(vget_high_u16(high))}};
  }
  static REALM_INLINE void StoreFloats(float* out, Floats floats) {
    REALM_UNROLL
    for (int i = 0; i < kQuarters; ++i) vst1q_f32(out + 4 * i, floats.quarters[i]);
  }

  static REALM_INLINE uint32_t LargestMagnitude(Floats a, Floats b) {
    uint32x4_t largest = vdupq_n_u32(0);
    REALM_UNROLL
    for (int i = 0; i < kQuarters; ++i) {
      largest = vmaxq_u32(largest, vreinterpretq_u32_f32(vabsq_f32(a.quarters[i])));
      largest = vmaxq_u32(largest, vreinterpretq_u32_f32(vabsq_f32(b.quarters[i])));
    }
    return vmaxvq_u32(largest);
  }
  static REALM_INLINE int32_t RoundAndStore(Floats x, float factor, int8_t* codes) {
    const Ints rounded = Each<Ints>([&](int i) { return vcvtnq_s32_f32(vmulq_n_f32(x.quarters[i], factor)); });
    const int32x4_t* four = rounded.quarters;
    const int16x8_t low = vcombine_s16(vqmovn_s32(four[0]), vqmovn_s32(four[1]));
    const int16x8_t high = vcombine_s16(vqmovn_s32(four[2]), vqmovn_s32(four[3]));
    vst1q_s8(codes, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
    return vaddvq_s32(vaddq_s32(vaddq_s32(four[0], four[1]), vaddq_s32(four[2], four[3])));
  }
};

constexpr Kernels kKernels = MakeKernels<NeonDotprod>();

}  // namespace

const Kernels* NeonDotprodKernels() { return &kKernels; }

}  // namespace realm

#endif  // defined(REALM_NEON)
