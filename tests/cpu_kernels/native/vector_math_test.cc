// The vector operations of every instruction set against portable ones, and the functions over them against libm.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "check.h"
#include "half.h"
#include "probe.h"

namespace realm::test {
namespace {

constexpr double kEps = 0x1p-24;  // what one rounding to float32 may change, relative

const Probe& Portable() { return *Sets()[0].probe; }

// Three operands: the special numbers, each with each, then ordinary numbers of every magnitude that models meet.
struct Operands {
  std::vector<float> a, b, c;
};

Operands ManyOperands() {
  const std::vector<float> special = SpecialFloats();
  Operands operands;
  for (float a : special) {
    for (float b : special) {
      operands.a.push_back(a);
      operands.b.push_back(b);
      operands.c.push_back(special[operands.c.size() % special.size()]);
    }
  }
  Random random(1);
  const auto draw = [&] { return random.Normal() * std::exp2(random.Uniform(-40.0f, 40.0f)); };
  while (operands.a.size() < 4096) {
    operands.a.push_back(draw());
    operands.b.push_back(draw());
    operands.c.push_back(draw());
  }
  // No lane of a vector holds the same operands always.
  for (std::vector<float>* each : {&operands.a, &operands.b, &operands.c}) {
    std::shuffle(each->begin(), each->end(), std::mt19937(2));
  }
  return operands;
}

// Arguments of the functions: dense where they bend, to where they are flat and past it, and the special numbers.
std::vector<float> Arguments() {
  std::vector<float> x = SpecialFloats();
  Random random(7);
  for (int i = 0; i < 40000; ++i) {
    x.push_back(random.Uniform(-4.0f, 4.0f));
    x.push_back(random.Uniform(-100.0f, 100.0f));
    x.push_back(random.Normal() * std::exp2(random.Uniform(-30.0f, 0.0f)));
  }
  x.resize((x.size() + kLanes - 1) / kLanes * kLanes);
  return x;
}

template <class Apply>
std::vector<float> EachVector(size_t count, Apply apply) {
  std::vector<float> out(count);
  for (size_t i = 0; i < count; i += kLanes) apply(i, out.data() + i);
  return out;
}

REALM_TEST(OperationsEqualPortableOnes) {
  const Operands operands = ManyOperands();
  const std::vector<float>&a = operands.a, &b = operands.b, &c = operands.c;
  const size_t count = a.size();
  for (const Set& set : Sets()) {
    for (size_t k = 0; k < std::size(set.probe->unary); ++k) {
      const auto run = [&](const Probe& p) {
        return EachVector(count, [&](size_t i, float* out) { p.unary[k].apply(&a[i], out); });
      };
      CheckSame(run(*set.probe).data(), run(Portable()).data(), count, set.name, " ", set.probe->unary[k].name);
    }
    for (size_t k = 0; k < std::size(set.probe->binary); ++k) {
      const auto run = [&](const Probe& p) {
        return EachVector(count, [&](size_t i, float* out) { p.binary[k].apply(&a[i], &b[i], out); });
      };
      CheckSame(run(*set.probe).data(), run(Portable()).data(), count, set.name, " ", set.probe->binary[k].name);
    }
    const auto fma = [&](const Probe& p) {
      return EachVector(count, [&](size_t i, float* out) { p.fma(&a[i], &b[i], &c[i], out); });
    };
    CheckSame(fma(*set.probe).data(), fma(Portable()).data(), count, set.name, " Fma");
    const auto where = [&](const Probe& p) {
      return EachVector(count, [&](size_t i, float* out) { p.where_negative(&a[i], &b[i], &c[i], out); });
    };
    CheckSame(where(*set.probe).data(), where(Portable()).data(), count, set.name, " WhereNegative");
  }
}

REALM_TEST(ScalingByPowersOfTwoIsExact) {
  float a[kLanes], exponent[kLanes], out[kLanes], expected[kLanes];
  for (int n = -124; n <= 0; ++n) {
    for (int i = 0; i < kLanes; ++i) {
      a[i] = 0.5f + static_cast<float>(i) / 11.0f;
      exponent[i] = static_cast<float>(n);
      expected[i] = std::ldexp(a[i], n);
    }
    for (const Set& set : Sets()) {
      set.probe->scale_by_power_of_two(a, exponent, out);
      CheckSame(out, expected, kLanes, set.name, " by 2^", n);
    }
  }
}

REALM_TEST(PartsOfVectors) {
  const std::vector<float> a = ManyOperands().a;
  for (const Set& set : Sets()) {
    for (int count = 1; count <= kLanes; ++count) {
      float kept[kLanes], copied[kLanes], expected[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        copied[i] = -7.0f;
        expected[i] = i < count ? a[static_cast<size_t>(i)] : -7.0f;
      }
      // An array of its exact length: sanitizers see a read past what was asked for.
      const std::vector<float> some(a.begin(), a.begin() + count);
      set.probe->copy_some(some.data(), count, copied);
      set.probe->keep_first(a.data(), count, -7.0f, kept);
      CheckSame(copied, expected, kLanes, set.name, " LoadSome, StoreSome of ", count);
      CheckSame(kept, expected, kLanes, set.name, " KeepFirst of ", count);
    }
  }
}

REALM_TEST(SumsAndLargestOfALane) {
  Random random(5);
  float a[kLanes];
  for (int repeat = 0; repeat < 2000; ++repeat) {
    for (float& lane : a) lane = random.Normal() * std::exp2(random.Uniform(-10.0f, 10.0f));
    const float sum = Portable().sum(a);
    const float largest = *std::max_element(a, a + kLanes);
    for (const Set& set : Sets()) {
      Check(Same(set.probe->sum(a), sum), set.name, " Sum is ", set.probe->sum(a), ", portable has ", sum);
      Check(set.probe->largest(a) == largest, set.name, " Largest is ", set.probe->largest(a), ", not ", largest);
    }
  }
}

REALM_TEST(LoadsOfAnyBytesEqualPortable) {
  Random random(8);
  for (int repeat = 0; repeat < 2000; ++repeat) {
    const std::vector<uint8_t> bytes = random.Bytes(2 * kLanes);
    for (const Set& set : Sets()) {
      for (size_t k = 0; k < std::size(set.probe->load); ++k) {
        float out[kLanes], expected[kLanes];
        set.probe->load[k].apply(bytes.data(), out);
        Portable().load[k].apply(bytes.data(), expected);
        CheckSame(out, expected, kLanes, set.name, " ", set.probe->load[k].name);
      }
    }
  }
}

REALM_TEST(StoredHalvesAreThoseOfHalfH) {
  const std::vector<float> a = ManyOperands().a;
  for (const Set& set : Sets()) {
    for (size_t i = 0; i < a.size(); i += kLanes) {
      uint16_t halves[kLanes];
      uint8_t bytes[sizeof halves];
      set.probe->store_halves(&a[i], bytes);
      std::memcpy(halves, bytes, sizeof halves);
      for (size_t j = 0; j < kLanes; ++j) {
        const float got = HalfToFloat(halves[j]), expected = HalfToFloat(FloatToHalf(a[i + j]));
        Check(Same(got, expected), set.name, " StoreHalves of ", a[i + j], " is ", got, ", not ", expected);
      }
    }
  }
}

// The value of float16 bits, by their definition.
double ValueOfHalf(uint32_t bits) {
  const int exponent = static_cast<int>(bits >> 10 & 31);
  const double fraction = bits & 1023;
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == 31) return fraction == 0 ? sign * INFINITY : NAN;
  return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25));
}

REALM_TEST(EveryHalf) {
  for (uint32_t first = 0; first < 0x10000; first += kLanes) {
    uint16_t halves[kLanes];
    float expected[kLanes], out[kLanes];
    for (uint32_t i = 0; i < kLanes; ++i) {
      halves[i] = static_cast<uint16_t>(first + i);
      expected[i] = static_cast<float>(ValueOfHalf(first + i));
      const bool returns = FloatToHalf(expected[i]) == halves[i] || std::isnan(expected[i]);
      Check(returns && Same(HalfToFloat(halves[i]), expected[i]), "half.h takes ", first + i, " for something else");
    }
    for (const Set& set : Sets()) {
      uint8_t bytes[sizeof halves];
      std::memcpy(bytes, halves, sizeof halves);
      set.probe->load[0].apply(bytes, out);
      CheckSame(out, expected, kLanes, set.name, " LoadHalves from ", first);
    }
  }
}

REALM_TEST(FloatsRoundToTheNearestHalf) {
  // Between each two neighbours: just below the middle, the middle, which goes to the even one, and just above.
  for (uint32_t bits = 0; bits < 0x7bff; ++bits) {
    const auto middle = static_cast<float>((ValueOfHalf(bits) + ValueOfHalf(bits + 1)) / 2);
    const uint32_t even = bits % 2 == 0 ? bits : bits + 1;
    Check(FloatToHalf(std::nextafter(middle, 0.0f)) == bits, "just below the middle above half ", bits);
    Check(FloatToHalf(middle) == even, "the middle above half ", bits);
    Check(FloatToHalf(std::nextafter(middle, INFINITY)) == bits + 1, "just above the middle above half ", bits);
    Check(FloatToHalf(-middle) == (even | 0x8000u), "minus the middle above half ", bits);
  }
  // 65520 is the middle between the largest half and what would follow it.
  Check(FloatToHalf(std::nextafter(65520.0f, 0.0f)) == 0x7bff && FloatToHalf(65520.0f) == 0x7c00, "the largest half");
}

REALM_TEST(FunctionsEqualPortableOnes) {
  const std::vector<float> x = Arguments();
  for (const Set& set : Sets()) {
    for (size_t k = 0; k < std::size(set.probe->math); ++k) {
      const auto run = [&](const Probe& p) {
        return EachVector(x.size(), [&](size_t i, float* out) { p.math[k].apply(&x[i], out); });
      };
      CheckSame(run(*set.probe).data(), run(Portable()).data(), x.size(), set.name, " ", set.probe->math[k].name);
    }
  }
}

struct Expected {
  double value;
  double bound;
};

constexpr double kSmallest = 4.5e-38;  // above e^-86, which stands for everything below it

// Of ExpOfNegative, relative: two units of the last of 24 bits, each 2^-23 where it weighs most. They are made of a
// half each for the last operation and for 1 + r, the latter divided by at least 0.7, less than a half for r's own
// rounding and the polynomial's, which p r^2 <= 0.07 makes small, and a half for the polynomial itself.
constexpr double kExpEps = 4 * kEps;

// Sigmoid's e enters with its error times 1 / (1 + e) <= 1; sum and quotient are rounded once each.
constexpr double kSigmoidEps = kExpEps + 2 * kEps;

Expected OfExp(double x) { return {std::exp(x), kExpEps * std::exp(x) + kSmallest}; }

Expected OfSigmoid(double x) {
  const double y = 1 / (1 + std::exp(-x));
  return {y, kSigmoidEps * y + kSmallest};
}

Expected OfTanh(double x) { return {std::tanh(x), 0x1p-23}; }  // what vector_math.h promises

// x sigmoid(z), z known to `relative`: that error times z sigmoid'(z), and the roundings of sigmoid and the product.
Expected OfGated(double x, double z, double relative) {
  const double y = 1 / (1 + std::exp(-z));
  const double bound = std::fabs(x) * (y * (kSigmoidEps + kEps) + std::fabs(z) * y * (1 - y) * relative + kSmallest);
  return {x * y, bound + 0x1p-149};
}

Expected OfSilu(double x) { return OfGated(x, x, 0); }

// z = 2 sqrt(2 / pi) (x + 0.044715 x^3) after seven roundings: two of x^3, one of each constant, two sums and products.
Expected OfGelu(double x) {
  const double z = 2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
  return OfGated(x, z, 7 * kEps);
}

REALM_TEST(FunctionsLieWithinDerivedBoundsOfLibm) {
  Expected (*const oracles[])(double) = {OfExp, OfSigmoid, OfTanh, OfSilu, OfGelu};
  for (float x : Arguments()) {
    if (!std::isfinite(x)) continue;
    for (size_t k = 0; k < std::size(oracles); ++k) {
      const float argument = k == 0 ? -std::fabs(x) : x;
      float in[kLanes], out[kLanes];
      std::fill(in, in + kLanes, argument);
      Portable().math[k].apply(in, out);
      const Expected expected = oracles[k](argument);
      // Past the largest float the exact argument of GELU is finite and ours is not: both are flat there.
      if (!std::isfinite(expected.value)) continue;
      const double error = std::fabs(static_cast<double>(out[0]) - expected.value);
      Check(error <= expected.bound, Portable().math[k].name, "(", argument, ") is ", out[0], ", libm has ",
            expected.value, ", bound ", expected.bound);
    }
  }
}

REALM_TEST(FunctionsOfInfinityAndNaN) {
  float in[kLanes] = {-INFINITY, INFINITY, NAN};
  float out[kLanes];
  for (size_t k = 0; k < std::size(Portable().math); ++k) {
    Portable().math[k].apply(in, out);
    Check(std::isnan(out[2]), Portable().math[k].name, "(NaN) is ", out[2]);
  }
  Portable().math[1].apply(in, out);
  Check(out[0] < kSmallest && out[1] == 1.0f, "Sigmoid of the infinities is ", out[0], " and ", out[1]);
  Portable().math[2].apply(in, out);
  Check(out[0] == -1.0f && out[1] == 1.0f, "Tanh of the infinities is ", out[0], " and ", out[1]);
}

REALM_TEST(InverseRmsOfAnyLength) {
  Random random(6);
  for (int64_t count : {1, 15, 16, 17, 31, 32, 33, 63, 576, 2049}) {
    std::vector<float> x(static_cast<size_t>(count));
    double squares = 0;
    for (float& value : x) {
      value = random.Normal();
      squares += static_cast<double>(value) * value;
    }
    const double exact = 1 / std::sqrt(squares / static_cast<double>(count) + 1e-5);
    const float portable = Portable().inverse_rms(x.data(), count, 1e-5f);
    // A square takes part in count / 32 + 2 sums of its lane, 5 of the tree, 1 with eps, then a quotient; the root
    // halves those, and root and quotient round once more each. eps itself is rounded as well.
    const double bound = ((static_cast<double>(count) / 32 + 10) / 2 + 2) * kEps * exact;
    Check(std::fabs(portable - exact) <= bound, "InverseRms of ", count, " is ", portable, ", libm has ", exact);
    for (const Set& set : Sets()) {
      Check(Same(set.probe->inverse_rms(x.data(), count, 1e-5f), portable), set.name, " InverseRms of ", count);
    }
  }
}

}  // namespace
}  // namespace realm::test
