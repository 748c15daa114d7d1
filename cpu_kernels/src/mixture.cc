// How a mixture of experts is cut into chunks, and what a chunk does.
#include "mixture.h"

#include <algorithm>

#include "team.h"

namespace realm {
namespace {

// Tokens whose experts one chunk adds up.
constexpr int64_t kChunkTokens = 4;

size_t Aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

Matrix OfExpert(const ExpertMatrices& all, int64_t expert, int64_t columns, float* y) {
  const int64_t bytes = (all.rows + kTileRows - 1) / kTileRows * Geometry(all.kind).tile_bytes(columns);
  const float* bias = all.bias == nullptr ? nullptr : all.bias + expert * all.rows;
  return {all.kind, all.rows, all.tiles + expert * bytes, bias, y};
}

// The index of the projection that a chunk belongs to.
size_t OwnerOf(const std::vector<uint32_t>& ends, uint32_t chunk) {
  return static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), chunk) - ends.begin());
}

uint32_t FirstOf(const std::vector<uint32_t>& ends, size_t owner) { return owner == 0 ? 0 : ends[owner - 1]; }

}  // namespace

Routes::Routes(const Mixture& mixture) : first_pair_(static_cast<size_t>(mixture.experts) + 1) {
  const auto experts = static_cast<size_t>(mixture.experts);
  const auto count = static_cast<size_t>(mixture.count);
  for (size_t i = 0; i < count * experts; ++i) first_pair_[i % experts + 1] += mixture.weights[i] != 0.0f ? 1 : 0;
  for (size_t expert = 0; expert < experts; ++expert) first_pair_[expert + 1] += first_pair_[expert];
  tokens_.resize(static_cast<size_t>(first_pair_[experts]));
  parts_.reserve(tokens_.size());
  first_part_.reserve(count + 1);
  std::vector<int64_t> next(first_pair_.begin(), first_pair_.end() - 1);
  for (size_t token = 0; token < count; ++token) {
    first_part_.push_back(static_cast<int64_t>(parts_.size()));
    for (size_t expert = 0; expert < experts; ++expert) {
      if (mixture.weights[token * experts + expert] == 0.0f) continue;
      const int64_t pair = next[expert]++;
      tokens_[static_cast<size_t>(pair)] = static_cast<int32_t>(token);
      parts_.push_back({pair, static_cast<int64_t>(expert)});
    }
  }
  first_part_.push_back(static_cast<int64_t>(parts_.size()));
}

ProjectionBatch::ProjectionBatch(const std::vector<Projection>& projections, uint8_t* memory) {
  const auto most = static_cast<uint32_t>(Team::kMostChunks / std::max<size_t>(1, projections.size()));
  uint32_t quantize_end = 0;
  uint32_t multiply_end = 0;
  chunks_.reserve(projections.size());
  for (const Projection& projection : projections) {
    const ProjectionChunks& chunks = chunks_.emplace_back(projection, memory, most);
    memory += Aligned(ProjectionChunks::ScratchBytes(projection));
    quantize_ends_.push_back(quantize_end += chunks.quantize_chunks());
    multiply_ends_.push_back(multiply_end += chunks.multiply_chunks());
  }
}

size_t ProjectionBatch::ScratchBytes(const std::vector<Projection>& projections) {
  size_t bytes = 0;
  for (const Projection& projection : projections) bytes += Aligned(ProjectionChunks::ScratchBytes(projection));
  return bytes;
}

void ProjectionBatch::Quantize(uint32_t chunk) const {
  const size_t owner = OwnerOf(quantize_ends_, chunk);
  chunks_[owner].Quantize(chunk - FirstOf(quantize_ends_, owner));
}

void ProjectionBatch::Multiply(uint32_t chunk) const {
  const size_t owner = OwnerOf(multiply_ends_, chunk);
  chunks_[owner].Multiply(chunk - FirstOf(multiply_ends_, owner));
}

MixtureChunks::MixtureChunks(const Mixture& mixture, const Routes& routes) : mixture_(mixture), routes_(routes) {
  for (int64_t expert = 0; expert < mixture.experts; ++expert) {
    const int64_t first = routes.first_pair(expert);
    const int64_t count = routes.first_pair(expert + 1) - first;
    if (count == 0) continue;
    Projection inner{};
    inner.kernels = mixture.kernels;
    inner.x = mixture.x;
    inner.x_rows = routes.tokens() + first;
    inner.count = count;
    inner.columns = mixture.columns;
    inner.norm = mixture.norm;
    inner.norm_eps = mixture.norm_eps;
    inner.matrices[0] = OfExpert(mixture.gate, expert, mixture.columns, nullptr);
    inner.matrices[1] = OfExpert(mixture.up, expert, mixture.columns, nullptr);
    inner.matrix_count = 2;
    inner.gate = mixture.activation;
    inner.gate_options = mixture.options;
    inner_.push_back(inner);
    Projection outer{};
    outer.kernels = mixture.kernels;
    outer.count = count;
    outer.columns = mixture.gate.rows;
    outer.matrices[0] = OfExpert(mixture.down, expert, outer.columns, nullptr);
    outer.matrix_count = 1;
    outer_.push_back(outer);
  }
}

// | activations between gate and down [pairs, inner] | products [pairs, rows] | scratch of either stage's projections |
size_t MixtureChunks::ScratchBytes() const {
  const auto pairs = static_cast<size_t>(routes_.pairs());
  return Aligned(pairs * static_cast<size_t>(mixture_.gate.rows) * sizeof(float)) +
         Aligned(pairs * static_cast<size_t>(mixture_.down.rows) * sizeof(float)) +
         ProjectionBatch::ScratchBytes(inner_) + ProjectionBatch::ScratchBytes(outer_);
}

void MixtureChunks::Use(uint8_t* memory) {
  const auto pairs = static_cast<size_t>(routes_.pairs());
  auto* between = reinterpret_cast<float*>(memory);
  memory += Aligned(pairs * static_cast<size_t>(mixture_.gate.rows) * sizeof(float));
  auto* products = reinterpret_cast<float*>(memory);
  memory += Aligned(pairs * static_cast<size_t>(mixture_.down.rows) * sizeof(float));
  products_ = products;
  for (size_t i = 0; i < inner_.size(); ++i) {
    const int64_t first = inner_[i].x_rows - routes_.tokens();
    inner_[i].matrices[0].y = between + first * mixture_.gate.rows;
    outer_[i].x = inner_[i].matrices[0].y;
    outer_[i].matrices[0].y = products + first * mixture_.down.rows;
  }
  stages_.clear();
  stages_.emplace_back(inner_, memory);
  stages_.emplace_back(outer_, memory + ProjectionBatch::ScratchBytes(inner_));
}

uint32_t MixtureChunks::chunks(int phase) const {
  if (phase == kPhases - 1) {
    return static_cast<uint32_t>(
        std::min<int64_t>((mixture_.count + kChunkTokens - 1) / kChunkTokens, Team::kMostChunks));
  }
  const ProjectionBatch& stage = stages_[static_cast<size_t>(phase / 2)];
  return phase % 2 == 0 ? stage.quantize_chunks() : stage.multiply_chunks();
}

void MixtureChunks::Run(int phase, uint32_t chunk) const {
  if (phase == kPhases - 1) return AddUp(chunk);
  const ProjectionBatch& stage = stages_[static_cast<size_t>(phase / 2)];
  phase % 2 == 0 ? stage.Quantize(chunk) : stage.Multiply(chunk);
}

void MixtureChunks::AddUp(uint32_t chunk) const {
  const int64_t width = mixture_.down.rows;
  const int64_t step = int64_t{chunks(kPhases - 1)} * kChunkTokens;
  for (int64_t first = chunk * kChunkTokens; first < mixture_.count; first += step) {
    for (int64_t token = first; token < std::min(mixture_.count, first + kChunkTokens); ++token) {
      float* y = mixture_.y + token * width;
      std::fill(y, y + width, 0.0f);
      for (const Routes::Part* part = routes_.begin(token); part != routes_.end(token); ++part) {
        const float weight = mixture_.weights[token * mixture_.experts + part->expert];
        const float* product = products_ + part->pair * width;
        for (int64_t i = 0; i < width; ++i) y[i] += weight * product[i];
      }
    }
  }
}

}  // namespace realm
