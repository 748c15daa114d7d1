// A mixture of experts, cut into chunks: the gated feed-forward blocks of the experts that tokens chose.
#ifndef CPU_KERNELS_MIXTURE_H_
#define CPU_KERNELS_MIXTURE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "projection.h"

namespace realm {

// One matrix [rows, columns] an expert, the tiles of all of them one after the other. `bias`[experts, rows] may be
// null.
struct ExpertMatrices {
  TileKind kind;
  int64_t rows;
  const uint8_t* tiles;
  const float* bias;
};

// y[t] = sum over e of weights[t, e] * down_e(activation(gate_e(x[t]), up_e(x[t]))), over the experts whose weight is
// not zero, in their order.
struct Mixture {
  const Kernels* kernels;
  const float* x;  // [count, columns]
  int64_t count;
  int64_t columns;
  const float* norm;  // null where x is normalised
  float norm_eps;
  const float* weights;  // [count, experts]; a phase has at least 16 chunks of a team for each of kMostExperts
  int64_t experts;
  ExpertMatrices gate;
  ExpertMatrices up;
  ExpertMatrices down;
  Gate activation;
  GateOptions options;
  float* y;  // [count, down.rows]
};

// Which tokens go to which expert. A pair is a token with an expert of its own; pairs are ordered by expert, then
// token.
class Routes {
 public:
  explicit Routes(const Mixture& mixture);

  int64_t pairs() const { return static_cast<int64_t>(tokens_.size()); }
  int64_t first_pair(int64_t expert) const { return first_pair_[static_cast<size_t>(expert)]; }
  const int32_t* tokens() const { return tokens_.data(); }

  // The pairs of a token, in the order of their experts, and their experts.
  struct Part {
    int64_t pair;
    int64_t expert;
  };
  const Part* begin(int64_t token) const { return parts_.data() + first_part_[static_cast<size_t>(token)]; }
  const Part* end(int64_t token) const { return parts_.data() + first_part_[static_cast<size_t>(token) + 1]; }

 private:
  std::vector<int64_t> first_pair_;
  std::vector<int32_t> tokens_;
  std::vector<int64_t> first_part_;
  std::vector<Part> parts_;
};

// Projections side by side, whose chunks are numbered one after the other.
class ProjectionBatch {
 public:
  // `projections` live as long as this, as do the ScratchBytes(projections) bytes of `memory`.
  ProjectionBatch(const std::vector<Projection>& projections, uint8_t* memory);

  static size_t ScratchBytes(const std::vector<Projection>& projections);

  uint32_t quantize_chunks() const { return quantize_ends_.empty() ? 0 : quantize_ends_.back(); }
  void Quantize(uint32_t chunk) const;
  uint32_t multiply_chunks() const { return multiply_ends_.empty() ? 0 : multiply_ends_.back(); }
  void Multiply(uint32_t chunk) const;

 private:
  std::vector<ProjectionChunks> chunks_;
  std::vector<uint32_t> quantize_ends_;
  std::vector<uint32_t> multiply_ends_;
};

// A mixture in phases, one after the other, each of independent chunks.
class MixtureChunks {
 public:
  static constexpr int kPhases = 5;

  // `routes` are those of the mixture; both live as long as this.
  MixtureChunks(const Mixture& mixture, const Routes& routes);

  // Before any chunk, `memory` is given, of so many bytes.
  size_t ScratchBytes() const;
  void Use(uint8_t* memory);

  uint32_t chunks(int phase) const;
  void Run(int phase, uint32_t chunk) const;

 private:
  void AddUp(uint32_t chunk) const;

  const Mixture& mixture_;
  const Routes& routes_;
  const float* products_ = nullptr;  // [pairs, down.rows]
  std::vector<Projection> inner_;    // gate and up of each expert in use
  std::vector<Projection> outer_;    // down
  std::vector<ProjectionBatch> stages_;
};

}  // namespace realm

#endif  // CPU_KERNELS_MIXTURE_H_
