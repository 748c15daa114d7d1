// Kernels that leave products of 16 rows to a matrix unit, written once over its operations `V`:
//
//     void EnterMatrixUnit(), LeaveMatrixUnit()       see Kernels
//     void MatrixUnitSums<columns>(x, codes, sums)    sums[16][16] = x[16][columns] times the codes of a tile's rows
//
// Rows of x are 32 bytes apart; of the codes, byte 4 r + k of each 64 is that of row r for column 4 j + k.
#ifndef CPU_KERNELS_AMX_H_
#define CPU_KERNELS_AMX_H_

#include <utility>

#include "kernel_templates.h"

namespace realm {

template <class V, TileKind kind>
void UseMatrixUnit(Kernels& kernels) {
  if constexpr (!IsPlain(kind)) {
    kernels.multiply[static_cast<int>(kind)][kHeights - 1] = Multiply<V, kind, kMatrixUnitRows>;
  }
}

template <class V, size_t... kind>
void UseMatrixUnits(Kernels& kernels, std::index_sequence<kind...>) {
  (UseMatrixUnit<V, static_cast<TileKind>(kind)>(kernels), ...);
}

// `base`, but for products of 16 rows with integer codes.
template <class V>
Kernels WithMatrixUnit(const Kernels& base) {
  Kernels kernels = base;
  UseMatrixUnits<V>(kernels, std::make_index_sequence<kTileKinds>());
  kernels.enter_matrix_unit = V::EnterMatrixUnit;
  kernels.leave_matrix_unit = V::LeaveMatrixUnit;
  return kernels;
}

}  // namespace realm

#endif  // CPU_KERNELS_AMX_H_
