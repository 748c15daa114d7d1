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

// How the 32 activations of a group were rounded: x ~ scale * code. `sum` adds up the codes, `half_sum` those of the
// first 16, and `scaled_sum` is scale * sum.
struct Rounding {
  float scale;
  float scaled_sum;
  int32_t sum;
  int32_t half_sum;
};

// The same where columns 0 to 15 and 16 to 31 have scales of their own.
struct HalvesRounding {
  float scales[2];
  int32_t sums[2];
};
static_assert(sizeof(HalvesRounding) == sizeof(Rounding));

// A block of `height` activation rows in 8 bits, or as they are, or both, group after group:
//
//     codes int8[groups][height][32] | roundings[groups][height] | values f32[groups][height][32]
//
// Threads that quantise multiples of four rows of a block never write to the same 64-byte line. Rows beyond those asked
// for are zeros. `codes` or `values` is null where nobody multiplies by them, and with the codes one kind of roundings.
struct RowBlock {
  struct Parts {
    bool codes = true;
    bool values = false;
    bool halves = false;
  };

  int8_t* codes;
  Rounding* roundings;
  HalvesRounding* halves;
  float* values;
  int height;

  static constexpr int64_t kCodedBytes = kGroup + sizeof(Rounding);  // of a group of a row

  static constexpr size_t Bytes(int64_t groups, int height, Parts parts) {
    const int64_t values = parts.values ? int64_t{kGroup * sizeof(float)} : 0;
    return static_cast<size_t>(((parts.codes ? kCodedBytes : 0) + values) * groups * height);
  }

  static RowBlock At(uint8_t* memory, int64_t groups, int height, Parts parts) {
    const int64_t count = groups * height;
    RowBlock block{nullptr, nullptr, nullptr, nullptr, height};
    if (parts.values) block.values = reinterpret_cast<float*>(parts.codes ? memory + kCodedBytes * count : memory);
    if (!parts.codes) return block;
    block.codes = reinterpret_cast<int8_t*>(memory);
    uint8_t* roundings = memory + kGroup * count;
    if (parts.halves) {
      block.halves = reinterpret_cast<HalvesRounding*>(roundings);
    } else {
      block.roundings = reinterpret_cast<Rounding*>(roundings);
    }
    return block;
  }
};

// A row of `columns` floats; where `norm` is not null it stands for x / sqrt(mean(x^2) + eps) * norm.
struct RowSource {
  const float* x;
  const float* norm;
  float eps;
  int64_t columns;
};

// Quantises a row into row `row` of a block; `groups` >= columns / 32 of them are written.
using QuantizeRow = void (*)(const RowSource& source, int64_t groups, int row, const RowBlock& block);

// out[height][16] = the block's rows times the 16 rows of a tile. There are two of each, for either kind of roundings.
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

// What becomes of products[rows][16] of a tile:
//
//     y[row * stride + j] = residual[row * stride + j] + scale * (product + bias[j])      j < outputs <= 16
//
// or product + bias[j] where `residual` is null; `bias` may be null too. `y` may be `products`, with a stride of 16.
struct TileProducts {
  const float* products;
  int64_t rows;
  int outputs;
  const float* bias;
  const float* residual;
  float scale;
  float* y;
  int64_t stride;
};
using StoreProducts = void (*)(const TileProducts& tile);

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
  StoreProducts store;
  GateFloats gates[kGates];  // null for kNone
  AddNormalizedRow add_normalized;
  LargestOf largest;
  RouteToken route;
  MultiplyTile multiply[2][kTileKinds][kHeights];  // [halves]; null above max_height
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
