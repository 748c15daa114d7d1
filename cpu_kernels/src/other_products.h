// Kernels of a set that differs from another one in its products of integer codes alone.
#ifndef CPU_KERNELS_OTHER_PRODUCTS_H_
#define CPU_KERNELS_OTHER_PRODUCTS_H_

#include <utility>

#include "matrix_unit.h"

namespace realm {

template <class V, TileKind kind>
void ReplaceProducts(Kernels& kernels) {
  if constexpr (IsPlain(kind)) {
    return;
  } else if constexpr (V::kMatrixUnit) {
    auto& multiply = kernels.multiply;
    multiply[false][static_cast<int>(kind)][kHeights - 1] = MultiplyOnMatrixUnit<V, Operation<kind, false>>;
    multiply[true][static_cast<int>(kind)][kHeights - 1] = MultiplyOnMatrixUnit<V, Operation<kind, true>>;
  } else {
    FillKind<V, kind>(kernels);
  }
}

template <class V, size_t... kind>
void ReplaceAllProducts(Kernels& kernels, std::index_sequence<kind...>) {
  (ReplaceProducts<V, static_cast<TileKind>(kind)>(kernels), ...);
}

// `base`, but for products of integer codes, which are those of V. Of a V with a matrix unit these are the products of
// 16 rows, and beside the vector operations it has
//
//     void EnterMatrixUnit(), LeaveMatrixUnit()       see Kernels
//     Codes SubtractFromCodes<offset>(codes)          in bytes with a sign
//     void MatrixUnitSums<columns>(x, codes, sums)    sums[16][16] = x[16][columns] times the codes of a tile's rows
//
// Rows of x are 32 bytes apart. Codes are bytes with a sign, of which byte 4 r + k of each 64 is that of row r for
// column 4 j + k.
template <class V>
Kernels WithProductsOf(const Kernels& base) {
  Kernels kernels = base;
  ReplaceAllProducts<V>(kernels, std::make_index_sequence<kTileKinds>());
  if constexpr (V::kMatrixUnit) {
    kernels.enter_matrix_unit = V::EnterMatrixUnit;
    kernels.leave_matrix_unit = V::LeaveMatrixUnit;
  }
  return kernels;
}

}  // namespace realm

#endif  // CPU_KERNELS_OTHER_PRODUCTS_H_
