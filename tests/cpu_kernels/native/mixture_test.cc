// Mixtures of experts: every instruction set against experts one by one, chunks in any order; the clamped gate.
#include "mixture.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "check.h"
#include "formats.h"
#include "probe.h"
#include "team.h"

namespace realm::test {
namespace {

constexpr double kEps = 0x1p-24;  // what one rounding to float32 may change, relative
constexpr int64_t kExperts = 3, kInner = 64;

std::vector<float> Normals(int64_t count, Random& random) {
  std::vector<float> x(static_cast<size_t>(count));
  for (float& value : x) value = random.Normal();
  return x;
}

// The matrices of the experts under each other; rows are a multiple of a tile's, so that their tiles are too.
struct Layer {
  BlockMatrix gate, up, down;
  std::vector<float> gate_bias, down_bias;

  explicit Layer(Random& random)
      : gate(RandomMatrix(BlockFormats()[0], kExperts * kInner, 3, random)),
        up(RandomMatrix(BlockFormats()[1], kExperts * kInner, 3, random)),
        down(RandomMatrix(BlockFormats()[4], kExperts * 48, kInner / 32, random)),
        gate_bias(Normals(kExperts * kInner, random)),
        down_bias(Normals(kExperts * 48, random)) {}
};

Mixture Prepare(const Kernels& kernels, const Layer& layer, const std::vector<float>& x,
                const std::vector<float>& weights, std::vector<float>* y) {
  Mixture mixture{};
  mixture.kernels = &kernels;
  mixture.x = x.data();
  mixture.count = static_cast<int64_t>(weights.size()) / kExperts;
  mixture.columns = layer.gate.columns;
  mixture.weights = weights.data();
  mixture.experts = kExperts;
  mixture.gate = {layer.gate.format->kind, kInner, layer.gate.tiles.data(), layer.gate_bias.data()};
  mixture.up = {layer.up.format->kind, kInner, layer.up.tiles.data(), nullptr};
  mixture.down = {layer.down.format->kind, 48, layer.down.tiles.data(), layer.down_bias.data()};
  mixture.activation = Gate::kClampedSwiGlu;
  mixture.options = {1.7f, 1.0f};
  y->assign(static_cast<size_t>(mixture.count * 48), std::nanf(""));
  mixture.y = y->data();
  return mixture;
}

// All chunks of all phases, last first: they must not depend on each other. The memory has exactly its size.
void Run(const Mixture& mixture) {
  const Routes routes(mixture);
  MixtureChunks chunks(mixture, routes);
  std::vector<uint8_t> memory(chunks.ScratchBytes());
  chunks.Use(memory.data());
  for (int phase = 0; phase < MixtureChunks::kPhases; ++phase) {
    for (uint32_t i = chunks.chunks(phase); i-- > 0;) chunks.Run(phase, i);
  }
}

REALM_TEST(TokensDoNotDependOnEachOther) {
  Random random(31);
  const Layer layer(random);
  for (int64_t count : {1, 5, 70}) {
    const std::vector<float> x = Normals(count * layer.gate.columns, random);
    std::vector<float> weights = Normals(count * kExperts, random);
    for (size_t i = 0; i < weights.size(); i += 2) weights[i] = 0.0f;
    std::vector<float> expected;
    Run(Prepare(*Sets()[0].kernels, layer, x, weights, &expected));
    for (const Set& set : Sets()) {
      std::vector<float> together;
      Run(Prepare(*set.kernels, layer, x, weights, &together));
      CheckSame(together.data(), expected.data(), expected.size(), set.name, " ", count, " tokens together");
      for (int64_t token = 0; token < count; token += 4) {
        const auto row = [&](const std::vector<float>& all, int64_t width) {
          return std::vector<float>(all.begin() + token * width, all.begin() + (token + 1) * width);
        };
        std::vector<float> alone;
        const std::vector<float> own_x = row(x, layer.gate.columns), own_weights = row(weights, kExperts);
        Run(Prepare(*set.kernels, layer, own_x, own_weights, &alone));
        CheckSame(alone.data(), expected.data() + token * 48, 48, set.name, " token ", token, " of ", count);
      }
    }
  }
}

REALM_TEST(PairsAreOrderedByExpertAndToken) {
  const float weights[] = {0, 1, 2, 0, 0, 0, 3, NAN, 0};
  Mixture mixture{};
  mixture.count = 3;
  mixture.experts = 3;
  mixture.weights = weights;
  const Routes routes(mixture);
  const std::vector<int32_t> tokens(routes.tokens(), routes.tokens() + routes.pairs());
  Check(tokens == std::vector<int32_t>{2, 0, 2, 0}, "tokens of the pairs");
  Check(routes.first_pair(1) == 1 && routes.first_pair(2) == 3, "first pairs");
  Check(routes.begin(1) == routes.end(1) && routes.end(2) - routes.begin(2) == 2, "parts of a token");
  Check(routes.begin(2)[1].pair == 2 && routes.begin(2)[1].expert == 1, "NaN is a weight like others");
}

REALM_TEST(TheClampedGateLiesWithinItsBound) {
  Random random(32);
  const GateOptions options{1.702f, 7.0f};
  std::vector<float> gate(4096), up(4096), out(4096), expected(4096);
  for (size_t i = 0; i < gate.size(); ++i) {
    gate[i] = random.Uniform(-20.0f, 20.0f);
    up[i] = random.Uniform(-20.0f, 20.0f);
  }
  constexpr auto kIndex = static_cast<int>(Gate::kClampedSwiGlu);
  Sets()[0].kernels->gates[kIndex](gate.data(), up.data(), options, 4096, expected.data());
  for (const Set& set : Sets()) {
    set.kernels->gates[kIndex](gate.data(), up.data(), options, 4096, out.data());
    CheckSame(out.data(), expected.data(), out.size(), set.name, " clamped gate");
  }
  for (size_t i = 0; i < out.size(); ++i) {
    const double g = std::min(gate[i], 7.0f), u = std::clamp(up[i], -7.0f, 7.0f), slope = double{1.702f} * g;
    const double exact = g / (1 + std::exp(-slope)) * (u + 1);
    // The argument is rounded to slope * eps, exp to 2 units in the last place, and six operations follow.
    const double bound = (10 + 2 * std::fabs(slope)) * kEps * std::fabs(exact) + kEps * std::fabs(g);
    Check(std::fabs(out[i] - exact) <= bound, "gate ", gate[i], " up ", up[i], ": ", out[i], " instead of ", exact);
  }
}

}  // namespace
}  // namespace realm::test
