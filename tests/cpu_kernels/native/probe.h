// The vector operations and functions of an instruction set behind plain pointers: the types V never leave their files.
#ifndef TESTS_CPU_KERNELS_NATIVE_PROBE_H_
#define TESTS_CPU_KERNELS_NATIVE_PROBE_H_

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "vector_math.h"

namespace realm::test {

struct Unary {
  const char* name;
  void (*apply)(const float* a, float* out);
};
struct Binary {
  const char* name;
  void (*apply)(const float* a, const float* b, float* out);
};

struct Load {
  const char* name;
  void (*apply)(const uint8_t* bytes, float* out);
};

struct Probe {
  Unary math[5];  // the functions of vector_math.h, in the order of its file
  Unary unary[2];
  Binary binary[6];
  void (*scale_by_power_of_two)(const float* a, const float* exponent, float* out) = nullptr;
  void (*fma)(const float* a, const float* b, const float* c, float* out) = nullptr;
  void (*where_negative)(const float* sign, const float* a, const float* b, float* out) = nullptr;
  void (*keep_first)(const float* a, int count, float fill, float* out) = nullptr;
  void (*copy_some)(const float* a, int count, float* out) = nullptr;
  Load load[4] = {};
  void (*store_halves)(const float* a, uint8_t* out) = nullptr;
  float (*sum)(const float* a) = nullptr;
  float (*largest)(const float* a) = nullptr;
  float (*inverse_rms)(const float* x, int64_t count, float eps) = nullptr;
};

template <class V, typename V::Floats (*function)(typename V::Floats)>
void ApplyMath(const float* a, float* out) {
  V::StoreFloats(out, function(V::LoadFloats(a)));
}

#define REALM_UNARY(name) {#name, [](const float* a, float* out) { V::StoreFloats(out, V::name(V::LoadFloats(a))); }}
#define REALM_BINARY(name)                                             \
  {#name, [](const float* a, const float* b, float* out) {             \
     V::StoreFloats(out, V::name(V::LoadFloats(a), V::LoadFloats(b))); \
   }}
#define REALM_LOAD(name) {#name, [](const uint8_t* bytes, float* out) { V::StoreFloats(out, V::name(bytes)); }}

template <class V>
constexpr Probe MakeProbe() {
  Probe probe{
      {{"ExpOfNegative", ApplyMath<V, ExpOfNegative<V>>},
       {"Sigmoid", ApplyMath<V, Sigmoid<V>>},
       {"Tanh", ApplyMath<V, Tanh<V>>},
       {"Silu", ApplyMath<V, Silu<V>>},
       {"GeluTanh", ApplyMath<V, GeluTanh<V>>}},
      {REALM_UNARY(Abs), REALM_UNARY(Round)},
      {REALM_BINARY(Add), REALM_BINARY(Sub), REALM_BINARY(Mul), REALM_BINARY(Div), REALM_BINARY(Max),
       REALM_BINARY(Min)},
  };
  probe.scale_by_power_of_two = [](const float* a, const float* exponent, float* out) {
    V::StoreFloats(out, V::ScaleByPowerOfTwo(V::LoadFloats(a), V::LoadFloats(exponent)));
  };
  probe.fma = [](const float* a, const float* b, const float* c, float* out) {
    V::StoreFloats(out, V::Fma(V::LoadFloats(a), V::LoadFloats(b), V::LoadFloats(c)));
  };
  probe.where_negative = [](const float* sign, const float* a, const float* b, float* out) {
    V::StoreFloats(out, V::WhereNegative(V::LoadFloats(sign), V::LoadFloats(a), V::LoadFloats(b)));
  };
  probe.keep_first = [](const float* a, int count, float fill, float* out) {
    V::StoreFloats(out, V::KeepFirst(V::LoadFloats(a), count, fill));
  };
  probe.copy_some = [](const float* a, int count, float* out) { V::StoreSome(out, V::LoadSome(a, count), count); };
  probe.load[0] = REALM_LOAD(LoadHalves);
  probe.load[1] = REALM_LOAD(LoadBfloats);
  probe.load[2] = REALM_LOAD(LoadSignedBytes);
  probe.load[3] = REALM_LOAD(SplatHalf);
  probe.store_halves = [](const float* a, uint8_t* out) { V::StoreHalves(out, V::LoadFloats(a)); };
  probe.sum = [](const float* a) { return V::Sum(V::LoadFloats(a)); };
  probe.largest = [](const float* a) { return V::Largest(V::LoadFloats(a)); };
  probe.inverse_rms = [](const float* x, int64_t count, float eps) { return InverseRms<V>(x, count, eps); };
  return probe;
}

#undef REALM_UNARY
#undef REALM_BINARY
#undef REALM_LOAD

// Null where the build has no such instruction set.
const Probe* PortableProbe();
const Probe* Avx2Probe();
const Probe* Avx512VnniProbe();
const Probe* NeonDotprodProbe();

// The kernels of AMX, but for its matrix unit, which is plain C++; null where AVX-512 was not compiled.
const Kernels* EmulatedAmxKernels();

// An instruction set that this CPU runs.
struct Set {
  const char* name;
  const Kernels* kernels;
  const Probe* probe;
};

// Those that this CPU runs, portable first.
const std::vector<Set>& Sets();

}  // namespace realm::test

#endif  // TESTS_CPU_KERNELS_NATIVE_PROBE_H_
