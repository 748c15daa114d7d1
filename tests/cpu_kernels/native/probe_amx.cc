// amx.cc, and its kernels on a matrix unit of plain C++ for CPUs that have none.
#include "amx.cc"  // NOLINT(bugprone-suspicious-include)
#include "probe.h"

#if defined(REALM_AVX)

#include "avx512_vnni.h"
#include "other_products.h"

namespace realm::test {
namespace {

thread_local bool entered = false;

struct EmulatedUnit : Avx512Vnni {
  static constexpr bool kMatrixUnit = true;

  static void EnterMatrixUnit() { entered = true; }
  static void LeaveMatrixUnit() { entered = false; }

  // Not entered, the unit would be an illegal instruction: what comes out then is wrong everywhere.
  template <int columns>
  static void MatrixUnitSums(const int8_t* x, const uint8_t* codes, int32_t* sums) {
    for (int row = 0; row < kMatrixUnitRows; ++row) {
      for (int output = 0; output < kTileRows; ++output) {
        int32_t sum = entered ? 0 : 1 << 30;
        for (int column = 0; column < columns; ++column) {
          const auto code = static_cast<int8_t>(codes[64 * (column / 4) + 4 * output + column % 4]);
          sum += x[kGroup * row + column] * code;
        }
        sums[kTileRows * row + output] = sum;
      }
    }
  }
};

}  // namespace

const Kernels* EmulatedAmxKernels() {
  static const Kernels kernels = WithProductsOf<EmulatedUnit>(*Avx512VnniKernels());
  return &kernels;
}

}  // namespace realm::test

#else

namespace realm::test {

const Kernels* EmulatedAmxKernels() { return nullptr; }

}  // namespace realm::test

#endif  // defined(REALM_AVX)
