// The kernels for x86-64 with AMX.
#include "macros.h"
#if defined(REALM_AMX)

#include <immintrin.h>

#include <array>

#include "avx512_vnni.h"
#include "other_products.h"

namespace realm {
namespace {

// How many rows each register has, and of how many bytes, as LDTILECFG reads it.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

// Register 0 has the sums; 1 and 2 have x and the codes of 32 columns, 3 and 4 those of 16.
constexpr TileConfig MakeTileConfig() {
  TileConfig config;
  constexpr std::array<std::array<uint8_t, 2>, 5> shapes = {{{16, 64}, {16, 32}, {8, 64}, {16, 16}, {4, 64}}};
  for (size_t i = 0; i < shapes.size(); ++i) {
    config.rows[i] = shapes[i][0];
    config.row_bytes[i] = shapes[i][1];
  }
  return config;
}

// GCC does not say of its instructions that load tiles that they read memory.
REALM_INLINE void FinishStores() { __asm__ volatile("" ::: "memory"); }

struct Amx : Avx512Vnni {
  static constexpr bool kMatrixUnit = true;

  static void EnterMatrixUnit() {
    static constexpr TileConfig config = MakeTileConfig();
    _tile_loadconfig(&config);
  }
  static void LeaveMatrixUnit() { _tile_release(); }

  template <int columns>
  static REALM_INLINE void MatrixUnitSums(const int8_t* x, const uint8_t* codes, int32_t* sums) {
    static_assert(columns == 32 || columns == 16);
    FinishStores();
    _tile_zero(0);
    if constexpr (columns == 32) {
      _tile_loadd(1, x, kGroup);
      _tile_loadd(2, codes, 64);
      _tile_dpbssd(0, 1, 2);
    } else {
      _tile_loadd(3, x, kGroup);
      _tile_loadd(4, codes, 64);
      _tile_dpbssd(0, 3, 4);
    }
    _tile_stored(0, sums, 64);
  }
};

}  // namespace

const Kernels* AmxKernels() {
  static const Kernels kernels = WithProductsOf<Amx>(*Avx512VnniKernels());
  return &kernels;
}

}  // namespace realm

#endif  // defined(REALM_AMX)
