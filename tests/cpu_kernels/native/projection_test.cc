// Quantisation, products and projections: portable ones against exact numbers, every instruction set against portable.
#include "projection.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "check.h"
#include "formats.h"
#include "half.h"
#include "probe.h"
#include "team.h"

namespace realm::test {
namespace {

constexpr double kEps = 0x1p-24;  // what one rounding to float32 may change, relative
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

const Set& Portable() { return Sets()[0]; }

using Rows = std::vector<std::vector<float>>;

// Normal numbers of various sizes, with outliers.
Rows OrdinaryRows(int64_t count, int64_t columns, Random& random) {
  Rows rows;
  for (int64_t row = 0; row < count; ++row) {
    std::vector<float>& x = rows.emplace_back(static_cast<size_t>(columns));
    const float size = std::exp(random.Normal());
    for (size_t i = 0; i < x.size(); ++i) x[i] = size * random.Normal() * (i % 37 == 5 ? 30.0f : 1.0f);
  }
  return rows;
}

// Zeros, subnormals, the smallest group that counts and what lies below it, huge values, ties, spikes, infinity and
// NaN.
Rows AdversarialRows(int64_t columns) {
  Rows rows(10, std::vector<float>(static_cast<size_t>(columns)));
  for (size_t i = 0; i < rows[0].size(); ++i) {
    const float ramp = static_cast<float>(i % 255) - 127.0f;
    rows[1][i] = 1e-40f;
    rows[2][i] = std::ldexp(ramp / 127.0f, -120);
    rows[3][i] = i % 3 != 0 ? 1e30f : -1e30f;
    rows[4][i] = ramp + 0.5f;
    rows[5][i] = i % 32 == 31 ? -1e4f : 0.0f;
    rows[6][i] = i % 2 == 0 ? 127.0f : 0.5f;
    rows[7][i] = -1.0f;
    rows[8][i] = i == 3 ? INFINITY : 1.0f;
    rows[9][i] = i + 1 == rows[0].size() ? kNaN : ramp;
  }
  return rows;
}

std::vector<float> Joined(const Rows& rows) {
  std::vector<float> all;
  for (const std::vector<float>& row : rows) all.insert(all.end(), row.begin(), row.end());
  return all;
}

// A block of one row after another, in memory of exactly its size: sanitizers see an access beyond it.
struct Quantized {
  std::vector<uint8_t> memory;
  RowBlock block;

  Quantized(const Kernels& kernels, const Rows& rows, int64_t groups, bool halves, const float* norm = nullptr)
      : memory(RowBlock::Bytes(groups, static_cast<int>(rows.size()), {true, true, halves})),
        block(RowBlock::At(memory.data(), groups, static_cast<int>(rows.size()), {true, true, halves})) {
    for (size_t i = 0; i < rows.size(); ++i) {
      const RowSource source{rows[i].data(), norm, 1e-5f, static_cast<int64_t>(rows[i].size())};
      kernels.quantize(source, groups, static_cast<int>(i), block);
    }
  }
};

bool SameRounding(const RowBlock& a, const RowBlock& b, size_t at) {
  if (a.halves != nullptr) {
    const HalvesRounding &x = a.halves[at], &y = b.halves[at];
    return Same(x.scales[0], y.scales[0]) && Same(x.scales[1], y.scales[1]) && x.sums[0] == y.sums[0] &&
           x.sums[1] == y.sums[1];
  }
  const Rounding &x = a.roundings[at], &y = b.roundings[at];
  return Same(x.scale, y.scale) && Same(x.scaled_sum, y.scaled_sum) && x.sum == y.sum && x.half_sum == y.half_sum;
}

void CheckSameBlock(const Quantized& got, const Quantized& expected, size_t count, const char* name) {
  const RowBlock &a = got.block, &b = expected.block;
  CheckSame(a.values, b.values, kGroup * count, name, " values");
  Check(std::equal(a.codes, a.codes + kGroup * count, b.codes), name, " codes differ from portable ones");
  for (size_t at = 0; at < count; ++at) {
    Check(SameRounding(a, b, at), name, " rounding of group ", at, " differs from the portable one");
  }
}

// Codes of `count` columns with one scale, which stand for x; null where they are padding.
void CheckCodes(const int8_t* codes, int count, float scale, const float* x, const char* where) {
  float largest = 0.0f;
  bool finite = true;
  for (int i = 0; x != nullptr && i < count; ++i) {
    finite &= std::isfinite(x[i]);
    largest = std::max(largest, std::fabs(x[i]));
  }
  if (!finite) {
    Check(std::isnan(scale), "the scale of ", where, " that is not finite is ", scale);
    return;
  }
  if (largest < 0x1p-120f) {
    Check(scale == 0.0f, where, " below 2^-120 has the scale ", scale);
    Check(std::all_of(codes, codes + count, [](int8_t code) { return code == 0; }), where, " has codes");
    return;
  }
  for (int i = 0; i < count; ++i) {
    // Half a step, and up to 127 steps times the roundings of 127 / largest, of the product and of the scale.
    Check(std::fabs(x[i] - double{scale} * codes[i]) <= double{scale} * (0.5 + 127 * 3.01 * kEps), x[i], " became ",
          +codes[i], " times ", scale);
  }
}

REALM_TEST(QuantizationIsToTheNearestCode) {
  Random random(11);
  const int64_t columns = 160, groups = 6;
  for (const Rows& some : {OrdinaryRows(16, columns, random), AdversarialRows(columns)}) {
    const Quantized whole(*Portable().kernels, some, groups, false);
    const Quantized halved(*Portable().kernels, some, groups, true);
    for (size_t at = 0; at < static_cast<size_t>(groups) * some.size(); ++at) {
      const size_t group = at / some.size();
      const bool padding = group >= static_cast<size_t>(columns / kGroup);
      const float* x = padding ? nullptr : some[at % some.size()].data() + kGroup * group;
      const int8_t* codes = whole.block.codes + kGroup * at;
      const Rounding& rounding = whole.block.roundings[at];
      CheckCodes(codes, kGroup, rounding.scale, x, "a group");
      Check(rounding.sum == std::accumulate(codes, codes + 32, 0), "the sum of group ", at);
      Check(rounding.half_sum == std::accumulate(codes, codes + 16, 0), "the sum of half of group ", at);
      Check(Same(rounding.scaled_sum, rounding.scale * static_cast<float>(rounding.sum)), "scaled sum of group ", at);
      for (int half = 0; half < 2; ++half) {
        codes = halved.block.codes + kGroup * at + 16 * half;
        const HalvesRounding& halves = halved.block.halves[at];
        CheckCodes(codes, 16, halves.scales[half], padding ? nullptr : x + 16 * half, "half a group");
        Check(halves.sums[half] == std::accumulate(codes, codes + 16, 0), "the sum of half ", half, " of group ", at);
      }
    }
  }
}

REALM_TEST(QuantizationEqualsPortable) {
  Random random(12);
  for (int64_t columns : {32, 160, 256}) {
    const int64_t groups = columns / kGroup + 1;
    const std::vector<float> norm = OrdinaryRows(1, columns, random)[0];
    for (const Rows& rows : {OrdinaryRows(16, columns, random), AdversarialRows(columns)}) {
      const size_t count = static_cast<size_t>(groups) * rows.size();
      Rows normalized = rows;
      for (std::vector<float>& x : normalized) {
        const float inverse = Portable().probe->inverse_rms(x.data(), columns, 1e-5f);
        for (size_t i = 0; i < x.size(); ++i) x[i] = x[i] * inverse * norm[i];
      }
      for (bool halves : {false, true}) {
        const Quantized expected(*Portable().kernels, rows, groups, halves);
        const Quantized expected_normal(*Portable().kernels, normalized, groups, halves);
        for (const Set& set : Sets()) {
          CheckSameBlock(Quantized(*set.kernels, rows, groups, halves), expected, count, set.name);
          const Quantized got_normal(*set.kernels, rows, groups, halves, norm.data());
          CheckSameBlock(got_normal, expected_normal, count, set.name);
        }
      }
    }
  }
}

// Multiplies all rows of a matrix, one block of `height` activation rows at a time.
std::vector<float> Products(const Kernels& kernels, const BlockMatrix& matrix, const Rows& rows, bool halves,
                            int height_index) {
  const TileGeometry geometry = Geometry(matrix.format->kind);
  const int64_t groups = geometry.padded_groups(matrix.columns);
  const int64_t tile_bytes = geometry.tile_bytes(matrix.columns);
  const auto tiles = static_cast<int64_t>(matrix.tiles.size()) / tile_bytes;
  const size_t height = size_t{1} << height_index;
  std::vector<float> out(rows.size() * static_cast<size_t>(tiles * kTileRows));
  for (size_t first = 0; first + height <= rows.size(); first += height) {
    const auto begin = rows.begin() + static_cast<std::ptrdiff_t>(first);
    const Quantized some(kernels, Rows(begin, begin + static_cast<std::ptrdiff_t>(height)), groups, halves);
    const MatrixUnit unit(kernels, some.block.height);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      std::vector<float> result(height * kTileRows);
      const MultiplyTile multiply = kernels.multiply[halves][static_cast<int>(matrix.format->kind)][height_index];
      multiply(matrix.tiles.data() + tile * tile_bytes, groups, some.block, result.data());
      for (size_t row = 0; row < height; ++row) {
        const auto at = ((first + row) * static_cast<size_t>(tiles) + static_cast<size_t>(tile)) * kTileRows;
        std::copy_n(result.data() + kTileRows * row, kTileRows, out.data() + at);
      }
    }
  }
  return out;
}

REALM_TEST(ProductsOfEveryHeightEqualPortable) {
  Random random(13);
  for (const BlockFormat& format : BlockFormats()) {
    for (int64_t blocks : {1, 2, 3}) {
      const BlockMatrix matrix = RandomMatrix(format, 37, blocks, random);
      Rows rows = AdversarialRows(matrix.columns);
      for (auto& row : OrdinaryRows(22, matrix.columns, random)) rows.push_back(row);
      for (bool halves : {false, true}) {
        const std::vector<float> expected = Products(*Portable().kernels, matrix, rows, halves, 0);
        for (const Set& set : Sets()) {
          for (int index = 0; (1 << index) <= set.kernels->max_height; ++index) {
            const std::vector<float> got = Products(*set.kernels, matrix, rows, halves, index);
            CheckSame(got.data(), expected.data(), got.size(), set.name, " ", format.name, " height ", 1 << index,
                      halves ? " halves" : "");
          }
        }
      }
    }
  }
}

struct Call {
  Projection projection{};
  std::vector<float> y[2];
};

Call Prepare(const Kernels& kernels, const std::vector<const BlockMatrix*>& matrices, const std::vector<float>& x) {
  Call call;
  Projection& p = call.projection;
  p.kernels = &kernels;
  p.x = x.data();
  p.columns = matrices[0]->columns;
  p.count = static_cast<int64_t>(x.size()) / p.columns;
  p.matrix_count = static_cast<int>(matrices.size());
  for (size_t i = 0; i < matrices.size(); ++i) {
    call.y[i].assign(static_cast<size_t>(p.count * matrices[i]->rows), kNaN);
    const BlockMatrix& m = *matrices[i];
    p.matrices[i] = {m.format->kind, m.rows, m.tiles.data(), nullptr, call.y[i].data()};
  }
  return call;
}

// All chunks of all phases, last first: they must not depend on each other.
void Run(const Projection& projection) {
  std::vector<uint8_t> memory(ProjectionChunks::ScratchBytes(projection));
  const ProjectionChunks chunks(projection, memory.data(), Team::kMostChunks);
  for (uint32_t i = chunks.quantize_chunks(); i-- > 0;) chunks.Quantize(i);
  for (uint32_t i = chunks.multiply_chunks(); i-- > 0;) chunks.Multiply(i);
  for (uint32_t i = chunks.add_chunks(); i-- > 0;) chunks.Add(i);
}

// A row of activations, of which `shared` have a scale, times a row of the matrix.
void CheckProduct(const BlockMatrix& matrix, const float* x, int64_t output, int64_t shared, float got) {
  const bool plain = IsPlain(matrix.format->kind);
  double exact = 0, bound = 0, magnitude = 0;
  for (int64_t first = 0; first < matrix.columns; first += shared) {
    const int64_t end = std::min(matrix.columns, first + shared);
    float largest = 0;
    for (int64_t i = first; i < end; ++i) largest = std::max(largest, std::fabs(x[i]));
    // As QuantizationIsToTheNearestCode has it.
    const double step = plain ? 0 : largest / 127.0, off = step * (0.5 + 127 * 3.01 * kEps);
    for (int64_t i = first; i < end; ++i) {
      const Weight weight = matrix.At(output, i);
      const double parts = std::fabs(weight.scaled) + std::fabs(weight.min);
      exact += x[i] * (weight.scaled + weight.min);
      bound += off * parts;
      magnitude += (std::fabs(x[i]) + off) * parts;
    }
  }
  // The accumulator sees four operations of a group at most, and a product of scales is rounded before each; of plain
  // floats each of two sees 16.
  const int64_t groups = (matrix.columns + kGroup - 1) / kGroup;
  bound += (plain ? 17 : 8) * static_cast<double>(groups) * kEps * magnitude;
  Check(std::fabs(got - exact) <= bound, matrix.format->name, ": ", got, " instead of ", exact, ", bound ", bound);
}

REALM_TEST(ProductsLieWithinDerivedBoundsOfTheFile) {
  Random random(14);
  for (const BlockFormat& format : BlockFormats()) {
    const BlockMatrix matrix = RandomMatrix(format, 19, 3, random);
    const Rows rows = OrdinaryRows(3, matrix.columns, random);
    const std::vector<float> x = Joined(rows);
    for (bool halves : {false, true}) {
      Call call = Prepare(*Portable().kernels, {&matrix}, x);
      call.projection.halves = halves;
      Run(call.projection);
      for (size_t row = 0; row < rows.size(); ++row) {
        for (int64_t output = 0; output < matrix.rows; ++output) {
          const float got = call.y[0][row * static_cast<size_t>(matrix.rows) + static_cast<size_t>(output)];
          CheckProduct(matrix, rows[row].data(), output, halves ? 16 : 32, got);
        }
      }
    }
  }
}

// 127 in one column has the scale 1, and everywhere else nothing: the products are that column's weights times 127.
REALM_TEST(PackingKeepsEveryWeight) {
  Random random(15);
  for (const BlockFormat& format : BlockFormats()) {
    for (int64_t rows : {1, 16, 37}) {
      const BlockMatrix matrix = RandomMatrix(format, rows, format.columns == 32 ? 5 : 2, random);
      std::vector<float> x(static_cast<size_t>(matrix.columns * matrix.columns));
      for (int64_t i = 0; i < matrix.columns; ++i) x[static_cast<size_t>(i * matrix.columns + i)] = 127.0f;
      const Call call = Prepare(*Sets().back().kernels, {&matrix}, x);
      Run(call.projection);
      for (int64_t column = 0; column < matrix.columns; ++column) {
        for (int64_t row = 0; row < rows; ++row) {
          const Weight weight = matrix.At(row, column);
          const double parts = 127 * (std::fabs(weight.scaled) + std::fabs(weight.min));
          const float got = call.y[0][static_cast<size_t>(column * rows + row)];
          // Two roundings: adding the scaled part to zero, and the minimum to that.
          Check(std::fabs(got - 127 * (weight.scaled + weight.min)) <= parts * 2.01 * kEps, format.name, " [", row,
                ", ", column, "] is ", got / 127, " instead of ", weight.scaled + weight.min);
        }
      }
    }
  }
}

REALM_TEST(PackingByRanges) {
  Random random(16);
  for (const BlockFormat& format : BlockFormats()) {
    const BlockMatrix matrix = RandomMatrix(format, 50, 1, random);
    std::vector<uint8_t> tiles(matrix.tiles.size(), 0xff);
    for (int64_t tile : {2, 0, 3, 1}) {
      realm_pack_tiles(format.packer, matrix.blocks.data(), nullptr, 50, matrix.columns, tile, tile + 1, tiles.data());
    }
    Check(tiles == matrix.tiles, format.name, " packed tile by tile differs from the whole");
    Check(realm_row_bytes(format.packer, 3 * format.columns) == 3 * format.bytes, format.name, " bytes of a row");
    if (IsPlain(format.kind)) continue;
    Check(realm_row_bytes(format.packer, format.columns + 16) == 0, format.name, " has half a block");
  }
}

struct Shape {
  int64_t rows, blocks, count;
};
constexpr Shape kShapes[] = {{1, 1, 1}, {16, 1, 2}, {17, 3, 3}, {83, 1, 5}, {33, 2, 16}, {40, 1, 37}};

void CheckCallsEqualPortable(const std::vector<const BlockMatrix*>& matrices, const std::vector<float>& x,
                             void (*extend)(Projection&, const float*), const float* operand, const char* what) {
  Call expected = Prepare(*Portable().kernels, matrices, x);
  extend(expected.projection, operand);
  Run(expected.projection);
  for (const Set& set : Sets()) {
    Call call = Prepare(*set.kernels, matrices, x);
    extend(call.projection, operand);
    Run(call.projection);
    for (size_t i = 0; i < matrices.size(); ++i) {
      CheckSame(call.y[i].data(), expected.y[i].data(), call.y[i].size(), set.name, " ", matrices[i]->format->name, " ",
                matrices[i]->rows, " x ", matrices[i]->columns, " x ", call.projection.count, " ", what);
    }
  }
}

REALM_TEST(ProjectionsEqualPortable) {
  Random random(17);
  for (const BlockFormat& format : BlockFormats()) {
    for (const Shape& shape : kShapes) {
      const BlockMatrix a = RandomMatrix(format, shape.rows, shape.blocks, random);
      const BlockFormat& other = IsPlain(format.kind) ? format : BlockFormats()[0];
      const BlockMatrix b = RandomMatrix(other, shape.rows, a.columns / other.columns, random);
      Rows rows = OrdinaryRows(shape.count, a.columns, random);
      if (shape.count > 10) std::copy_n(AdversarialRows(a.columns).begin(), 10, rows.begin() + 1);
      const std::vector<float> x = Joined(rows);
      // As long as any operand is: a bias, a norm's weights, a residual of every row.
      const std::vector<float> operand = OrdinaryRows(1, std::max(a.columns, shape.count * shape.rows), random)[0];
      CheckCallsEqualPortable({&a, &b}, x, [](Projection&, const float*) {}, nullptr, "plain");
      CheckCallsEqualPortable(
          {&a, &b}, x,
          [](Projection& p, const float* v) {
            p.norm = v;
            p.norm_eps = 1e-5f;
            p.matrices[0].bias = v;
          },
          operand.data(), "normalised, with a bias");
      CheckCallsEqualPortable({&a, &b}, x, [](Projection& p, const float*) { p.halves = true; }, nullptr, "in halves");
      CheckCallsEqualPortable(
          {&a, &b}, x, [](Projection& p, const float*) { p.gate = Gate::kSilu; }, nullptr, "gated by SiLU");
      CheckCallsEqualPortable(
          {&a, &b}, x, [](Projection& p, const float*) { p.gate = Gate::kGeluTanh; }, nullptr, "gated by GELU");
      CheckCallsEqualPortable(
          {&a}, x,
          [](Projection& p, const float* v) {
            p.residual = v;
            p.residual_scale = 0.7f;
          },
          operand.data(), "added");
      CheckCallsEqualPortable(
          {&a}, x,
          [](Projection& p, const float* v) {
            p.residual = v;
            p.residual_scale = 0.7f;
            p.post_norm = v;
            p.post_norm_eps = 1e-6f;
          },
          operand.data(), "normalised and added");
    }
  }
}

// Of numbers that no library function made: the recorded value ties CPUs to each other that no one run compares.
REALM_TEST(ResultsAreTheSameOnEveryCpu) {
  Random random(18);
  const auto draw = [&] { return static_cast<float>(static_cast<int32_t>(random.Bits() >> 8) - (1 << 23)) * 0x1p-22f; };
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (size_t index : {0, 4}) {
    const BlockFormat& format = BlockFormats()[index];
    BlockMatrix matrix{&format, 48, 288, random.Bytes(static_cast<size_t>(48 * 9 * format.bytes)), {}};
    for (size_t block = 0; block < 48 * 9; ++block) {
      const uint16_t half = FloatToHalf(draw());
      std::memcpy(matrix.blocks.data() + block * static_cast<size_t>(format.bytes), &half, sizeof half);
    }
    matrix.tiles.resize(static_cast<size_t>(3 * Geometry(format.kind).tile_bytes(matrix.columns)));
    realm_pack_tiles(format.packer, matrix.blocks.data(), nullptr, 48, matrix.columns, 0, 3, matrix.tiles.data());
    std::vector<float> x(static_cast<size_t>(5 * matrix.columns)), norm(static_cast<size_t>(matrix.columns));
    for (float& value : x) value = draw();
    for (float& value : norm) value = draw();
    Call call = Prepare(*Sets().back().kernels, {&matrix, &matrix}, x);
    call.projection.norm = norm.data();
    call.projection.norm_eps = 0x1p-17f;
    call.projection.gate = Gate::kGeluTanh;
    Run(call.projection);
    for (float value : call.y[0]) {
      Check(std::isfinite(value), format.name, " has a result of ", value);
      hash = (hash ^ BitsOfFloat(value)) * 0x100000001b3u;
    }
  }
  Check(hash == 0x91fccf0b2fe54f79u, "the hash of the results is ", std::hex, hash);
}

}  // namespace
}  // namespace realm::test
