// What an instruction set provides: quantisation of activations, products of tiles with rows of them, attention, and
// searches.
#ifndef CPU_KERNELS_KERNELS_H_
#define CPU_KERNELS_KERNELS_H_

#include <cstddef>
#include <cstdint>

#include "attention.h"
#include "macros.h"
#include "tiles.h"

namespace realm {

// How 32 activations were rounded: x ~ scale * code. `sum` adds up the codes, `half_sum` those of the first 16, and
// `scaled_sum` is scale * sum.
struct Rounding {
  float scale;
  float scaled_sum;
  int32_t sum;
  int32_t half_sum;
};

// A block of `height` activation rows in 8 bits, or as they are, or both, group after group:
//
//     codes int8[groups][height][32] | roundings[groups][height] | values f32[groups][height][32]
//
// Threads that quantise multiples of four rows of a block never write to the same 64-byte line. Rows beyond those asked
// for are zeros. `codes` or `values` is null where nobody multiplies by them.
struct RowBlock {
  struct Parts {
    bool codes = true;
    bool values = false;
  };

  int8_t* codes;
  Rounding* roundings;
  float* values;
  int height;

  static constexpr int64_t kCodedBytes = kGroup + sizeof(Rounding);  // of a group of a row

  static constexpr size_t Bytes(int64_t groups, int height, Parts parts) {
    const int64_t values = parts.values ? int64_t{kGroup * sizeof(float)} : 0;
    return static_cast<size_t>(((parts.codes ? kCodedBytes : 0) + values) * groups * height);
  }

  static RowBlock At(uint8_t* memory, int64_t groups, int height, Parts parts) {
    const int64_t count = groups * height;
    auto* values = reinterpret_cast<float*>(parts.codes ? memory + kCodedBytes * count : memory);
    if (!parts.codes) return {nullptr, nullptr, values, height};
    auto* roundings = reinterpret_cast<Rounding*>(memory + kGroup * count);
    return {reinterpret_cast<int8_t*>(memory), roundings, parts.values ? values : nullptr, height};
  }
};

// A row of `columns` floats; where `norm` is not null it stands for x / sqrt(mean(x^2) + eps) * norm.
struct RowSource {
  const float* x;
  const float* norm;
  float eps;
  int64_t columns;
};

// Quantises a row into row `row` of a block, and where `twice` what that rounded away into row `row + 1`, so that both
// add up to the row in 16 bits, or to its values; `groups` >= columns / 32 of them are written.
using QuantizeRow = void (*)(const RowSource& source, int64_t groups, bool twice, int row, const RowBlock& block);

// out[height][16] = the block's rows times the 16 rows of a tile.
using MultiplyTile = void (*)(const uint8_t* tile, int64_t groups, const RowBlock& block, float* out);

// out[i] = activation(gate[i]) * up[i] for i < count, a multiple of 16; `out` may be one of the inputs. kClampedSwiGlu:
// g sigmoid(alpha g) (u + 1), with g the gate or limit, if that is less, and u between -limit and limit.
enum class Gate : int32_t { kNone, kSilu, kGeluTanh, kClampedSwiGlu };
constexpr int kGates = 4;
struct GateOptions {
  float alpha;
  float limit;
};
using GateFloats = void (*)(const float* gate, const float* up, const GateOptions& options, int64_t count, float* out);

// out = residual + scale * branch
using AddNormalizedRow = void (*)(const RowSource& branch, const float* residual, float scale, float* out);

// The largest of `count` > 0 floats and its place: the first among equals, and the first NaN where there is one.
struct Largest {
  float value;
  int64_t index;
};
using LargestOf = Largest (*)(const float* x, int64_t count);

// How a router chooses: the `chosen` largest of `experts` logits, the first among equals. Their weights are the softmax
// over them where `normalise`, over all logits otherwise, times `scale`.
struct Choice {
  static constexpr int64_t kMostExperts = 4096;

  int64_t experts;
  int64_t chosen;
  bool normalise;
  float scale;
};
// weights[experts], zero where an expert is not chosen; NaN for all where a logit is NaN.
using RouteToken = void (*)(const Choice& choice, const float* logits, float* weights);

constexpr int kHeights = 5;  // 1, 2, 4, 8, 16

struct Kernels {
  int max_height;
  QuantizeRow quantize;
  GateFloats gates[kGates];  // null for kNone
  AddNormalizedRow add_normalized;
  LargestOf largest;
  RouteToken route;
  MultiplyTile multiply[kTileKinds][kHeights];  // null above max_height
  AttentionKernels attention;
  // What a thread calls before and after products of `max_height` rows; null where that is nothing.
  void (*enter_matrix_unit)() = nullptr;
  void (*leave_matrix_unit)() = nullptr;
};

// Makes a thread ready for products of so many rows, as long as this lives.
class MatrixUnit {
 public:
  MatrixUnit(const Kernels& kernels, int rows)
      : kernels_(kernels), entered_(rows == kernels.max_height && kernels.enter_matrix_unit != nullptr) {
    if (entered_) kernels_.enter_matrix_unit();
  }
  ~MatrixUnit() {
    if (entered_) kernels_.leave_matrix_unit();
  }
  MatrixUnit(const MatrixUnit&) = delete;
  MatrixUnit& operator=(const MatrixUnit&) = delete;

 private:
  const Kernels& kernels_;
  const bool entered_;
};

// kNull has no kernels: handlers then take their operands and return zeros, which shows what a call costs by itself.
enum class InstructionSet : int32_t {
  kBest = 0,
  kPortable = 1,
  kAvx2 = 2,
  kAvxVnni = 3,
  kAvx512Vnni = 4,
  kAmx = 5,  // AVX-512 VNNI, and the matrix unit for 16 rows
  kNeonDotprod = 6,
  kNull = 255
};

// Null where this CPU cannot run them.
const Kernels* FindKernels(InstructionSet set);

const Kernels* PortableKernels();
#if defined(REALM_AVX)
const Kernels* Avx2Kernels();
const Kernels* Avx512VnniKernels();
#if defined(REALM_AVX_VNNI)
const Kernels* AvxVnniKernels();
#endif
#if defined(REALM_AMX)
const Kernels* AmxKernels();
#endif
#elif defined(REALM_NEON)
const Kernels* NeonDotprodKernels();
#endif

}  // namespace realm

#endif  // CPU_KERNELS_KERNELS_H_
