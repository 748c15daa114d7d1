// The kernels in plain C++: what every CPU can run, and what the others must equal bit for bit.
#include <cmath>

#include "kernel_templates.h"

namespace realm {
namespace {

struct Portable {
  struct Codes {
    uint8_t lanes[64];
  };
  struct Ints {
    int32_t lanes[kTileRows];
  };
  struct Floats {
    float lanes[kTileRows];
  };
  static constexpr bool kMatrixUnit = false;
  static constexpr int kMaxHeight = 4;
  static constexpr int kFloatRegisters = 4;  // of what a baseline CPU has, this many are never spilt

  static Codes LoadCodes(const uint8_t* bytes) {
    Codes codes;
    std::memcpy(codes.lanes, bytes, sizeof codes.lanes);
    return codes;
  }
  static Codes LowNibbles(Codes codes) {
    for (uint8_t& lane : codes.lanes) lane &= 15;
    return codes;
  }
  static Codes HighNibbles(Codes codes) {
    for (uint8_t& lane : codes.lanes) lane = static_cast<uint8_t>(lane >> 4);
    return codes;
  }

  // codes | (plane << shift & mask); a negative shift goes right.
  template <int mask, int shift>
  static Codes AddBits(Codes codes, const Codes& plane) {
    for (int i = 0; i < 64; ++i) {
      const int moved =
          shift > 0 ? plane.lanes[i] << (shift > 0 ? shift : 0) : plane.lanes[i] >> (shift > 0 ? 0 : -shift);
      codes.lanes[i] = static_cast<uint8_t>(codes.lanes[i] | (moved & mask));
    }
    return codes;
  }

  // 16 bytes, and for each code below 16 the byte that it numbers.
  static Codes LoadTable(const uint8_t* bytes) {
    Codes table;
    for (int i = 0; i < 64; ++i) table.lanes[i] = bytes[i % 16];
    return table;
  }
  static Codes Lookup(const Codes& table, Codes codes) {
    for (uint8_t& lane : codes.lanes) lane = table.lanes[lane];
    return codes;
  }

  static Ints SplatInt(int32_t value) {
    Ints ints;
    for (int32_t& lane : ints.lanes) lane = value;
    return ints;
  }
  static Ints AddInts(Ints a, const Ints& b) {
    for (int i = 0; i < kTileRows; ++i) a.lanes[i] += b.lanes[i];
    return a;
  }

  template <bool bytes>
  static Ints Start(int offset, int32_t sum) {
    return SplatInt(-offset * sum);
  }
  template <bool bytes>
  static Ints Dot(Ints sum, const Codes& codes, const int8_t* x) {
    for (int row = 0; row < kTileRows; ++row) {
      for (int k = 0; k < 4; ++k) sum.lanes[row] += codes.lanes[4 * row + k] * x[k];
    }
    return sum;
  }

  static Floats SplatFloat(float value) {
    Floats floats;
    for (float& lane : floats.lanes) lane = value;
    return floats;
  }
  static Floats LoadFloats(const float* x) { return LoadSome(x, kTileRows); }
  static Floats LoadSome(const float* x, int count) {
    Floats floats = {};
    std::memcpy(floats.lanes, x, static_cast<size_t>(count) * sizeof(float));
    return floats;
  }
  static void StoreSome(float* out, const Floats& floats, int count) {
    std::memcpy(out, floats.lanes, static_cast<size_t>(count) * sizeof(float));
  }
  static Floats KeepFirst(Floats floats, int count, float fill) {
    for (int i = count; i < kTileRows; ++i) floats.lanes[i] = fill;
    return floats;
  }
  template <class Operation>
  static Floats Map(Floats a, const Floats& b, Operation operation) {
    for (int i = 0; i < kTileRows; ++i) a.lanes[i] = operation(a.lanes[i], b.lanes[i]);
    return a;
  }
  static Floats Add(const Floats& a, const Floats& b) {
    return Map(a, b, [](float x, float y) { return x + y; });
  }
  static Floats Sub(const Floats& a, const Floats& b) {
    return Map(a, b, [](float x, float y) { return x - y; });
  }
  static Floats Div(const Floats& a, const Floats& b) {
    return Map(a, b, [](float x, float y) { return x / y; });
  }
  // As the instructions have it: the second where either is NaN.
  static Floats Max(const Floats& a, const Floats& b) {
    return Map(a, b, [](float x, float y) { return x > y ? x : y; });
  }
  static Floats Min(const Floats& a, const Floats& b) {
    return Map(a, b, [](float x, float y) { return x < y ? x : y; });
  }
  static Floats Abs(const Floats& a) {
    return Map(a, a, [](float x, float) { return FloatOfBits(BitsOfFloat(x) & 0x7fffffffu); });
  }
  static Floats Round(const Floats& a) {
    return Map(a, a, [](float x, float) { return std::nearbyint(x); });
  }
  static Floats ScaleByPowerOfTwo(const Floats& a, const Floats& exponent) {
    return Map(a, exponent, [](float x, float n) {
      if (n != n) return n;
      return FloatOfBits(BitsOfFloat(x) + (static_cast<uint32_t>(static_cast<int32_t>(n)) << 23));
    });
  }
  static Floats WhereNegative(const Floats& sign, Floats a, const Floats& b) {
    for (int i = 0; i < kTileRows; ++i) a.lanes[i] = BitsOfFloat(sign.lanes[i]) >> 31 ? a.lanes[i] : b.lanes[i];
    return a;
  }
  static float Sum(Floats floats) {
    for (int half = kTileRows / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) floats.lanes[i] += floats.lanes[i + half];
    }
    return floats.lanes[0];
  }
  static float Largest(const Floats& floats) {
    float largest = floats.lanes[0];
    for (float lane : floats.lanes) largest = lane > largest ? lane : largest;
    return largest;
  }
  static Floats ToFloats(const Ints& ints) {
    Floats floats;
    for (int i = 0; i < kTileRows; ++i) floats.lanes[i] = static_cast<float>(ints.lanes[i]);
    return floats;
  }
  static Floats Mul(Floats a, const Floats& b) {
    for (int i = 0; i < kTileRows; ++i) a.lanes[i] *= b.lanes[i];
    return a;
  }
  static Floats Fma(const Floats& a, const Floats& b, Floats c) {
    for (int i = 0; i < kTileRows; ++i) c.lanes[i] = std::fma(a.lanes[i], b.lanes[i], c.lanes[i]);
    return c;
  }
  static Floats LoadHalves(const uint8_t* halves) {
    Floats floats;
    for (int i = 0; i < kTileRows; ++i) {
      uint16_t half;
      std::memcpy(&half, halves + 2 * i, sizeof half);
      floats.lanes[i] = HalfToFloat(half);
    }
    return floats;
  }
  static Floats SplatHalf(const uint8_t* half) {
    uint16_t bits;
    std::memcpy(&bits, half, sizeof bits);
    return SplatFloat(HalfToFloat(bits));
  }
  static void StoreHalves(uint8_t* out, const Floats& floats) {
    for (int i = 0; i < kTileRows; ++i) {
      const uint16_t half = FloatToHalf(floats.lanes[i]);
      std::memcpy(out + 2 * i, &half, sizeof half);
    }
  }
  static Floats LoadBfloats(const uint8_t* bfloats) {
    Floats floats;
    for (int i = 0; i < kTileRows; ++i) {
      uint16_t high;
      std::memcpy(&high, bfloats + 2 * i, sizeof high);
      floats.lanes[i] = FloatOfBits(static_cast<uint32_t>(high) << 16);
    }
    return floats;
  }
  static Floats LoadSignedBytes(const uint8_t* bytes) {
    Floats floats;
    for (int i = 0; i < kTileRows; ++i) floats.lanes[i] = static_cast<float>(static_cast<int8_t>(bytes[i]));
    return floats;
  }
  // Halves whose bits are the bytes shifted left by 7.
  static Floats LoadShiftedHalves(const uint8_t* bytes) {
    Floats floats;
    for (int i = 0; i < kTileRows; ++i) floats.lanes[i] = HalfToFloat(static_cast<uint16_t>(bytes[i] << 7));
    return floats;
  }
  static void StoreFloats(float* out, const Floats& floats) { std::memcpy(out, floats.lanes, sizeof floats.lanes); }

  static uint32_t LargestMagnitude(Floats a, Floats b) {
    uint32_t largest = 0;
    for (int i = 0; i < kTileRows; ++i) {
      largest = std::max({largest, BitsOfFloat(a.lanes[i]) & 0x7fffffffu, BitsOfFloat(b.lanes[i]) & 0x7fffffffu});
    }
    return largest;
  }
  static int32_t RoundAndStore(Floats x, float factor, int8_t* codes) {
    int32_t sum = 0;
    for (int i = 0; i < kTileRows; ++i) {
      codes[i] = static_cast<int8_t>(std::nearbyint(x.lanes[i] * factor));
      sum += codes[i];
    }
    return sum;
  }
};

constexpr Kernels kKernels = MakeKernels<Portable>();

}  // namespace

const Kernels* PortableKernels() { return &kKernels; }

}  // namespace realm
