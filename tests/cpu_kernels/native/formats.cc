// How GGML defines its block formats (ggml-quants.c), and matrices in them.
#include "formats.h"

#include <cmath>

#include "half.h"

namespace realm::test {
namespace {

double Half(const uint8_t* bytes) {
  uint16_t bits;
  std::memcpy(&bits, bytes, sizeof bits);
  return HalfToFloat(bits);
}

// Nibbles of 32 codes: the first half in the low ones.
int Nibble(const uint8_t* nibbles, int i) { return i < 16 ? nibbles[i] & 15 : nibbles[i - 16] >> 4; }

int HighBit(const uint8_t* word, int i) { return (word[i / 8] >> i % 8 & 1) << 4; }

Weight Q4_0(const uint8_t* block, int i) { return {Half(block) * (Nibble(block + 2, i) - 8), 0}; }

Weight Q4_1(const uint8_t* block, int i) { return {Half(block) * Nibble(block + 4, i), Half(block + 2)}; }

Weight Q5_0(const uint8_t* block, int i) {
  return {Half(block) * ((Nibble(block + 6, i) | HighBit(block + 2, i)) - 16), 0};
}

Weight Q5_1(const uint8_t* block, int i) {
  return {Half(block) * (Nibble(block + 8, i) | HighBit(block + 4, i)), Half(block + 2)};
}

Weight Q8_0(const uint8_t* block, int i) { return {Half(block) * static_cast<int8_t>(block[2 + i]), 0}; }

// With the code of a weight given, the rest of Q4_K and Q5_K.
Weight WithSixBitScales(const uint8_t* block, int i, int code) {
  const uint8_t* q = block + 4;
  const int j = i / 32;
  const int scale = j < 4 ? q[j] & 63 : (q[j + 4] & 15) | q[j - 4] >> 6 << 4;
  const int min = j < 4 ? q[j + 4] & 63 : q[j + 4] >> 4 | q[j] >> 6 << 4;
  return {Half(block) * scale * code, -Half(block + 2) * min};
}

// Nibbles of 256 codes, 64 after 64: the first 32 in the low ones.
int WideNibble(const uint8_t* nibbles, int i) {
  const uint8_t both = nibbles[i / 64 * 32 + i % 32];
  return i % 64 < 32 ? both & 15 : both >> 4;
}

Weight Q4_K(const uint8_t* block, int i) { return WithSixBitScales(block, i, WideNibble(block + 16, i)); }

Weight Q5_K(const uint8_t* block, int i) {
  const int high = block[16 + i % 32] >> i / 32 & 1;
  return WithSixBitScales(block, i, WideNibble(block + 48, i) | high << 4);
}

Weight Q6_K(const uint8_t* block, int i) {
  const int half = i / 128, quarter = i % 128 / 32, l = i % 32;
  const uint8_t low = block[64 * half + l + quarter % 2 * 32];
  const int nibble = quarter < 2 ? low & 15 : low >> 4;
  const int high = block[128 + 32 * half + l] >> 2 * quarter & 3;
  const auto scale = static_cast<int8_t>(block[192 + 8 * half + 2 * quarter + l / 16]);
  return {Half(block + 208) * scale * ((nibble | high << 4) - 32), 0};
}

Weight IQ4_NL(const uint8_t* block, int i) {
  static constexpr int kValues[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  return {Half(block) * kValues[Nibble(block + 2, i)], 0};
}

// An e4m3 scale for 16 weights, without its sign and zero where it is NaN, times e2m1 floats.
Weight NVFP4(const uint8_t* block, int i) {
  static constexpr double kMagnitudes[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  const int part = i / 16, bits = block[part] & 127;
  const int exponent = bits >> 3, mantissa = bits & 7;
  const double scale = block[part] == 127 ? 0
                       : exponent == 0    ? std::ldexp(mantissa, -9)
                                          : std::ldexp(8 + mantissa, exponent - 10);
  const int code = block[4 + 8 * part + i % 8] >> (i % 16 < 8 ? 0 : 4) & 15;
  return {(code < 8 ? scale : -scale) * kMagnitudes[code & 7], 0};
}

Weight F32(const uint8_t* block, int i) {
  float weight;
  std::memcpy(&weight, block + 4 * i, sizeof weight);
  return {weight, 0};
}

Weight F16(const uint8_t* block, int i) { return {Half(block + 2 * i), 0}; }

Weight BF16(const uint8_t* block, int i) {
  const uint8_t wide[] = {0, 0, block[2 * i], block[2 * i + 1]};
  return F32(wide, 0);
}

void PutFloat(float value, uint8_t* weight) { std::memcpy(weight, &value, sizeof value); }

void PutHalf(float value, uint8_t* weight) {
  const uint16_t half = FloatToHalf(value);
  std::memcpy(weight, &half, sizeof half);
}

void PutBfloat(float value, uint8_t* weight) {
  uint8_t wide[4];
  PutFloat(value, wide);
  std::memcpy(weight, wide + 2, 2);
}

}  // namespace

const std::vector<BlockFormat>& BlockFormats() {
  static const std::vector<BlockFormat> formats = {
      {"Q4_0", 1, TileKind::kNibble, 32, 18, {0}, Q4_0},     {"Q4_1", 2, TileKind::kNibbleMin, 32, 20, {0, 2}, Q4_1},
      {"Q5_0", 3, TileKind::kFive, 32, 22, {0}, Q5_0},       {"Q5_1", 4, TileKind::kFiveMin, 32, 24, {0, 2}, Q5_1},
      {"Q8_0", 5, TileKind::kByte, 32, 34, {0}, Q8_0},       {"Q4_K", 11, TileKind::kQ4K, 256, 144, {0, 2}, Q4_K},
      {"Q5_K", 12, TileKind::kQ5K, 256, 176, {0, 2}, Q5_K},  {"Q6_K", 13, TileKind::kQ6K, 256, 210, {208}, Q6_K},
      {"IQ4_NL", 15, TileKind::kIq4Nl, 32, 18, {0}, IQ4_NL}, {"NVFP4", 18, TileKind::kNvfp4, 64, 36, {}, NVFP4},
      {"F32", 26, TileKind::kFloat32, 41, 164, {}, F32},     {"F16", 27, TileKind::kFloat16, 41, 82, {}, F16},
      {"BF16", 28, TileKind::kBfloat16, 41, 82, {}, BF16},
  };
  return formats;
}

Weight BlockMatrix::At(int64_t row, int64_t column) const {
  const int64_t block = (row * columns + column) / format->columns;
  return format->weight(blocks.data() + block * format->bytes, static_cast<int>(column % format->columns));
}

BlockMatrix RandomMatrix(const BlockFormat& format, int64_t rows, int64_t blocks, Random& random) {
  BlockMatrix matrix{
      &format, rows, blocks * format.columns, random.Bytes(static_cast<size_t>(rows * blocks * format.bytes)), {}};
  for (int64_t block = 0; block < rows * blocks; ++block) {
    uint8_t* bytes = matrix.blocks.data() + block * format.bytes;
    for (int at : format.halves) PutHalf(0.01f * random.Normal(), bytes + at);
    for (int i = 0; IsPlain(format.kind) && i < format.columns; ++i) {
      const auto put = format.kind == TileKind::kFloat32   ? PutFloat
                       : format.kind == TileKind::kFloat16 ? PutHalf
                                                           : PutBfloat;
      put(random.Normal(), bytes + i * (format.bytes / format.columns));
    }
  }
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  matrix.tiles.resize(static_cast<size_t>(tiles * Geometry(format.kind).tile_bytes(matrix.columns)));
  realm_pack_tiles(format.packer, matrix.blocks.data(), nullptr, rows, matrix.columns, 0, tiles, matrix.tiles.data());
  return matrix;
}

}  // namespace realm::test
