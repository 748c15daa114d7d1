// Functions of 16 floats, written once over the vector operations `V` of an instruction set.
//
// Each is a fixed sequence of correctly rounded operations, sums a fixed tree, so that every instruction set returns
// the same bits.
#ifndef CPU_KERNELS_VECTOR_MATH_H_
#define CPU_KERNELS_VECTOR_MATH_H_

#include <cmath>
#include <cstdint>

#include "macros.h"

namespace realm {

// e^x for x <= 0, to 2 units in the last place; what lies below e^-86 becomes e^-86.
template <class V>
REALM_INLINE typename V::Floats ExpOfNegative(typename V::Floats x) {
  using Floats = typename V::Floats;
  x = V::Max(V::SplatFloat(-86.0f), x);  // in this order, NaN stays NaN
  const Floats n = V::Round(V::Mul(x, V::SplatFloat(1.44269504f)));
  // ln 2 in two parts, the first of few enough bits that n times it is exact.
  Floats r = V::Fma(n, V::SplatFloat(-0.693359375f), x);
  r = V::Fma(n, V::SplatFloat(2.12194440e-4f), r);
  // Minimax polynomial of (e^r - 1 - r) / r^2 on [-ln 2 / 2, ln 2 / 2] (Cephes, expf).
  Floats p = V::SplatFloat(1.9875691500e-4f);
  p = V::Fma(p, r, V::SplatFloat(1.3981999507e-3f));
  p = V::Fma(p, r, V::SplatFloat(8.3334519073e-3f));
  p = V::Fma(p, r, V::SplatFloat(4.1665795894e-2f));
  p = V::Fma(p, r, V::SplatFloat(1.6666665459e-1f));
  p = V::Fma(p, r, V::SplatFloat(5.0000001201e-1f));
  p = V::Fma(V::Mul(p, r), r, V::Add(r, V::SplatFloat(1.0f)));
  return V::ScaleByPowerOfTwo(p, n);
}

// 1 / (1 + e^-x)
template <class V>
REALM_INLINE typename V::Floats Sigmoid(typename V::Floats x) {
  const typename V::Floats one = V::SplatFloat(1.0f);
  const typename V::Floats e = ExpOfNegative<V>(V::Sub(V::SplatFloat(0.0f), V::Abs(x)));
  return V::Div(V::WhereNegative(x, e, one), V::Add(one, e));
}

// tanh x = sign(x) (1 - e^-2|x|) / (1 + e^-2|x|), to an absolute 2^-23.
template <class V>
REALM_INLINE typename V::Floats Tanh(typename V::Floats x) {
  const typename V::Floats one = V::SplatFloat(1.0f);
  const typename V::Floats e = ExpOfNegative<V>(V::Mul(V::SplatFloat(-2.0f), V::Abs(x)));
  const typename V::Floats magnitude = V::Div(V::Sub(one, e), V::Add(one, e));
  return V::WhereNegative(x, V::Sub(V::SplatFloat(0.0f), magnitude), magnitude);
}

// x sigmoid(x)
template <class V>
REALM_INLINE typename V::Floats Silu(typename V::Floats x) {
  return V::Mul(x, Sigmoid<V>(x));
}

// x (1 + tanh(y)) / 2 = x sigmoid(2 y), with y = sqrt(2 / pi) (x + 0.044715 x^3)
template <class V>
REALM_INLINE typename V::Floats GeluTanh(typename V::Floats x) {
  const typename V::Floats cube = V::Mul(V::Mul(x, x), x);
  const typename V::Floats y = V::Fma(V::SplatFloat(0.044715f), cube, x);
  return V::Mul(x, Sigmoid<V>(V::Mul(V::SplatFloat(1.5957691216f), y)));
}

// 1 / sqrt(mean of squares + eps): what RMS normalisation multiplies by.
// The first `count` of 16 floats, and zeros behind them.
template <class V>
REALM_INLINE typename V::Floats LoadUpTo(const float* x, int64_t count) {
  return count >= 16 ? V::LoadFloats(x) : V::LoadSome(x, static_cast<int>(count));
}

template <class V>
REALM_INLINE void StoreUpTo(float* out, typename V::Floats floats, int64_t count) {
  count >= 16 ? V::StoreFloats(out, floats) : V::StoreSome(out, floats, static_cast<int>(count));
}

template <class V>
REALM_INLINE float InverseRms(const float* x, int64_t count, float eps) {
  typename V::Floats even = V::SplatFloat(0.0f);
  typename V::Floats odd = V::SplatFloat(0.0f);
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    const typename V::Floats a = V::LoadFloats(x + i);
    const typename V::Floats b = V::LoadFloats(x + i + 16);
    even = V::Fma(a, a, even);
    odd = V::Fma(b, b, odd);
  }
  for (; i < count; i += 16) {
    const typename V::Floats a = V::LoadSome(x + i, static_cast<int>(count - i < 16 ? count - i : 16));
    even = V::Fma(a, a, even);
  }
  return 1.0f / std::sqrt(V::Sum(V::Add(even, odd)) / static_cast<float>(count) + eps);
}

}  // namespace realm

#endif  // CPU_KERNELS_VECTOR_MATH_H_
