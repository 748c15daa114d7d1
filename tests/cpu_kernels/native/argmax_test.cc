// The place of the largest value of each row, against the definition, on every instruction set.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "argmax_chunks.h"
#include "check.h"
#include "probe.h"

namespace realm::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The first NaN, else the first of the largest.
int64_t ArgmaxOf(const float* x, int64_t count) {
  int64_t best = 0;
  for (int64_t i = 0; i < count && x[best] == x[best]; ++i) {
    if (x[i] > x[best] || x[i] != x[i]) best = i;
  }
  return best;
}

// Rows that differ in where the largest stands: anywhere, first, last, often, among special numbers, nowhere.
std::vector<std::vector<float>> RowsOf(int64_t columns) {
  Random random(static_cast<uint32_t>(columns));
  const std::vector<float> special = SpecialFloats();
  std::vector<std::vector<float>> rows(7, std::vector<float>(static_cast<size_t>(columns)));
  for (size_t i = 0; i < rows[0].size(); ++i) {
    rows[0][i] = random.Normal();
    rows[1][i] = -static_cast<float>(i);
    rows[2][i] = static_cast<float>(i);
    rows[3][i] = static_cast<float>(static_cast<int>(2 * random.Normal()));
    rows[4][i] = special[random.Bits() % (special.size() - 1)];  // all but NaN
    rows[5][i] = -kInfinity;
    rows[6][i] = random.Bits() % 2 == 0 ? 0.0f : -0.0f;
  }
  return rows;
}

constexpr int64_t kColumns[] = {1, 15, 16, 17, 31, 33, 1023, 1024, 1025, 3000, 16384, 16385, 40000};

REALM_TEST(TheLargestIsFoundWhereverItStands) {
  for (const Set& set : Sets()) {
    for (int64_t columns : kColumns) {
      const std::vector<std::vector<float>> rows = RowsOf(columns);
      for (size_t row = 0; row < rows.size(); ++row) {
        const int64_t expected = ArgmaxOf(rows[row].data(), columns);
        const Largest found = set.kernels->largest(rows[row].data(), columns);
        Check(found.index == expected && found.value == rows[row][static_cast<size_t>(expected)], set.name, " row ",
              row, " of ", columns, ": ", found.value, " at ", found.index, ", not ", expected);
      }
    }
  }
}

REALM_TEST(TheFirstNaNIsLargest) {
  for (const Set& set : Sets()) {
    for (int64_t columns : kColumns) {
      for (const std::vector<float>& row : RowsOf(columns)) {
        for (int64_t at : {int64_t{0}, columns / 2, columns - 1}) {
          std::vector<float> x = row;
          x[static_cast<size_t>(at)] = SpecialFloats().back();
          x.back() = SpecialFloats().back();
          const int64_t found = set.kernels->largest(x.data(), columns).index;
          Check(found == at, set.name, " of ", columns, ": NaN is at ", at, ", found ", found);
        }
      }
    }
  }
}

// Chunks in any order, as helpers take them, and one row's result beside many.
REALM_TEST(PiecesOfRowsAreMergedInOrder) {
  for (const Set& set : Sets()) {
    for (int64_t columns : kColumns) {
      std::vector<std::vector<float>> rows = RowsOf(columns);
      rows.push_back(rows[0]);
      rows.back()[static_cast<size_t>(columns / 3)] = SpecialFloats().back();
      rows.back().back() = SpecialFloats().back();
      std::vector<float> x;
      for (const std::vector<float>& row : rows) x.insert(x.end(), row.begin(), row.end());
      const auto count = static_cast<int64_t>(rows.size());
      std::vector<Largest> partials(static_cast<size_t>(ArgmaxChunks::Pieces(count, columns)));
      const ArgmaxChunks chunks(*set.kernels, x.data(), count, columns, partials.data());
      for (uint32_t chunk = chunks.chunks(); chunk-- > 0;) chunks.Find(chunk);
      std::vector<int32_t> found(rows.size());
      chunks.Merge(found.data());
      for (size_t row = 0; row < rows.size(); ++row) {
        const int64_t expected = ArgmaxOf(rows[row].data(), columns);
        Check(found[row] == expected, set.name, " row ", row, " of ", columns, ": ", found[row], ", not ", expected);
      }
    }
  }
}

// More pieces than a team takes chunks.
REALM_TEST(ManyRows) {
  constexpr int64_t count = 70000, columns = 2;
  std::vector<float> x(count * columns);
  for (int64_t row = 0; row < count; ++row) x[static_cast<size_t>(row * columns + row % columns)] = 1.0f;
  std::vector<Largest> partials(static_cast<size_t>(ArgmaxChunks::Pieces(count, columns)));
  const ArgmaxChunks chunks(*Sets()[0].kernels, x.data(), count, columns, partials.data());
  for (uint32_t chunk = 0; chunk < chunks.chunks(); ++chunk) chunks.Find(chunk);
  std::vector<int32_t> found(count);
  chunks.Merge(found.data());
  for (int64_t row = 0; row < count; ++row) {
    Check(found[static_cast<size_t>(row)] == row % columns, "row ", row, ": ", found[static_cast<size_t>(row)]);
  }
}

}  // namespace
}  // namespace realm::test
