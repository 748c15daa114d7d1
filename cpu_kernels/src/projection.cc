// How a projection is cut into chunks, and what a chunk does.
#include "projection.h"

#include <algorithm>

#include "team.h"

namespace realm {
namespace {

// Bytes of weights that a chunk reads where few rows are multiplied: at least about a microsecond's, some dozen times
// what taking a chunk costs, and more of a large matrix, as long as the members of a team end together.
constexpr int64_t kFewestChunkBytes = 32 * 1024;
constexpr int64_t kMostChunkBytes = 128 * 1024;
constexpr int64_t kManyChunks = 64;

int64_t ChunkBytes(int64_t bytes) { return std::clamp(bytes / kManyChunks, kFewestChunkBytes, kMostChunkBytes); }

// Where many rows are, bytes of weights that stay in a core's second cache while blocks of rows pass, and the blocks of
// a chunk, few enough that all members find work to the end.
constexpr int64_t kResidentBytes = 64 * 1024;
constexpr int64_t kChunkBlocks = 8;

// Of the chunks that a phase may have, one in so many are ranges of blocks at most; the others are ranges of tiles.
constexpr int64_t kChunksOfRange = 8;

// Rows that one chunk quantises or adds.
constexpr int64_t kChunkRows = 4;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The index in Kernels::multiply of the lowest kernel that holds so many rows.
int HeightIndex(int64_t rows) {
  int index = 0;
  while ((int64_t{1} << index) < rows) ++index;
  return index;
}

// Groups of a row of activations: enough for the units of every matrix.
int64_t PaddedGroups(const Projection& projection) {
  int64_t groups = 0;
  for (int i = 0; i < projection.matrix_count; ++i) {
    groups = std::max(groups, Geometry(projection.matrices[i].kind).padded_groups(projection.columns));
  }
  return groups;
}

// What the matrices multiply by.
RowBlock::Parts PartsOf(const Projection& projection) {
  RowBlock::Parts parts{false, false, projection.halves};
  for (int i = 0; i < projection.matrix_count; ++i) {
    (IsPlain(projection.matrices[i].kind) ? parts.values : parts.codes) = true;
  }
  return parts;
}

size_t QuantizedBytes(const Projection& projection) {
  const int height = projection.kernels->max_height;
  const int64_t blocks = CeilDiv(projection.count, height);
  return static_cast<size_t>(blocks) * RowBlock::Bytes(PaddedGroups(projection), height, PartsOf(projection));
}

int64_t Tiles(const Matrix& matrix) { return CeilDiv(matrix.rows, kTileRows); }

}  // namespace

ProjectionChunks::ProjectionChunks(const Projection& projection, uint8_t* memory, uint32_t most_chunks)
    : projection_(projection),
      memory_(memory),
      most_chunks_(most_chunks),
      row_parts_(PartsOf(projection)),
      groups_(PaddedGroups(projection)),
      block_rows_(projection.kernels->max_height),
      blocks_(CeilDiv(projection.count, block_rows_)),
      block_bytes_(static_cast<int64_t>(RowBlock::Bytes(groups_, projection.kernels->max_height, row_parts_))),
      parts_(projection.gate == Gate::kNone ? projection.matrix_count : 1),
      chunk_blocks_(std::min(
          blocks_, std::max(kChunkBlocks,
                            CeilDiv(blocks_, std::max<int64_t>(1, int64_t{most_chunks} / (parts_ * kChunksOfRange)))))),
      block_ranges_(CeilDiv(blocks_, std::max<int64_t>(1, chunk_blocks_))) {
  const int64_t most_of_range =
      std::max<int64_t>(1, int64_t{most_chunks} / parts_ / std::max<int64_t>(1, block_ranges_));
  for (int part = 0; part < parts_; ++part) {
    const Matrix& matrix = projection.matrices[part];
    const int64_t matrices = projection.gate == Gate::kNone ? 1 : 2;
    const int64_t bytes = matrices * Geometry(matrix.kind).tile_bytes(projection.columns);
    const int64_t wanted =
        (blocks_ > 1 ? kResidentBytes : ChunkBytes(Tiles(matrix) * bytes)) / std::max<int64_t>(1, bytes);
    chunk_tiles_[part] = std::max<int64_t>({1, wanted, CeilDiv(Tiles(matrix), most_of_range)});
    const int64_t chunks = CeilDiv(Tiles(matrix), chunk_tiles_[part]) * block_ranges_;
    first_chunk_[part + 1] = first_chunk_[part] + static_cast<uint32_t>(chunks);
  }
}

// | quantised activations | products of rows that are normalised before they are added |
size_t ProjectionChunks::ScratchBytes(const Projection& projection) {
  const size_t products = projection.post_norm == nullptr ? 0 : projection.count * projection.matrices[0].rows;
  return QuantizedBytes(projection) + products * sizeof(float);
}

RowBlock ProjectionChunks::Block(int64_t index) const {
  const int64_t rows = std::min(block_rows_, projection_.count - index * block_rows_);
  return RowBlock::At(memory_ + index * block_bytes_, groups_, 1 << HeightIndex(rows), row_parts_);
}

uint32_t ProjectionChunks::quantize_chunks() const {
  return static_cast<uint32_t>(std::min<int64_t>(CeilDiv(projection_.count, kChunkRows), most_chunks_));
}

void ProjectionChunks::Quantize(uint32_t chunk) const {
  const Projection& p = projection_;
  for (int64_t first = chunk * kChunkRows; first < p.count; first += quantize_chunks() * kChunkRows) {
    for (int64_t row = first; row < std::min(first + kChunkRows, blocks_ * block_rows_); ++row) {
      const RowBlock block = Block(row / block_rows_);
      const auto at = static_cast<int>(row % block_rows_);
      if (at >= block.height) continue;
      const bool inside = row < p.count;
      const int64_t x_row = inside && p.x_rows != nullptr ? p.x_rows[row] : row;
      const RowSource source{inside ? p.x + x_row * p.columns : nullptr, p.norm, p.norm_eps, inside ? p.columns : 0};
      p.kernels->quantize(source, groups_, at, block);
    }
  }
}

int ProjectionChunks::PartOf(uint32_t chunk) const {
  int part = 0;
  while (chunk >= first_chunk_[part + 1]) ++part;
  return part;
}

void ProjectionChunks::Multiply(uint32_t taken) const {
  const auto chunk = static_cast<uint32_t>(PlaceOf(taken, multiply_chunks()));
  const int part = PartOf(chunk);
  const int64_t index = chunk - first_chunk_[part];
  const int64_t first_tile = index / block_ranges_ * chunk_tiles_[part];
  const int64_t last_tile = std::min(Tiles(projection_.matrices[part]), first_tile + chunk_tiles_[part]);
  const int64_t first_block = index % block_ranges_ * chunk_blocks_;
  const int64_t last_block = std::min(blocks_, first_block + chunk_blocks_);
  const MatrixUnit unit(*projection_.kernels, Block(first_block).height);
  for (int64_t block = first_block; block < last_block; ++block) {
    for (int64_t tile = first_tile; tile < last_tile; ++tile) MultiplyTile(part, tile, block);
  }
}

void ProjectionChunks::MultiplyTile(int part, int64_t tile, int64_t block_index) const {
  const Projection& p = projection_;
  const RowBlock block = Block(block_index);
  alignas(64) float results[2][16 * kTileRows];
  const int64_t first_row = block_index * block_rows_;
  const int64_t rows = std::min(block_rows_, p.count - first_row);
  TileProducts products[2];
  const int matrices = p.gate == Gate::kNone ? 1 : 2;
  for (int i = 0; i < matrices; ++i) {
    const Matrix& matrix = p.matrices[part + i];
    const int64_t tile_bytes = Geometry(matrix.kind).tile_bytes(p.columns);
    const int64_t groups = Geometry(matrix.kind).padded_groups(p.columns);
    const auto& multiply = p.kernels->multiply[p.halves][static_cast<int>(matrix.kind)];
    multiply[HeightIndex(block.height)](matrix.tiles + tile * tile_bytes, groups, block, results[i]);
    const int64_t first_output = tile * kTileRows;
    const auto outputs = static_cast<int>(std::min<int64_t>(kTileRows, matrix.rows - first_output));
    const float* bias = matrix.bias == nullptr ? nullptr : matrix.bias + first_output;
    products[i] = {results[i], rows, outputs, bias, nullptr, 1.0f, results[i], kTileRows};
  }
  if (p.gate != Gate::kNone) {
    for (TileProducts& product : products) {
      if (product.bias != nullptr) p.kernels->store(product);
      product.bias = nullptr;
    }
    p.kernels->gates[static_cast<int>(p.gate)](results[0], results[1], p.gate_options, rows * kTileRows, results[0]);
  }
  Store(p.matrices[part], first_row * p.matrices[part].rows + tile * kTileRows, products[0]);
}

// Where the products of a matrix go, before they are normalised and added if they are to be.
float* ProjectionChunks::Products(const Matrix& matrix) const {
  if (projection_.post_norm == nullptr) return matrix.y;
  return reinterpret_cast<float*>(memory_ + QuantizedBytes(projection_));
}

void ProjectionChunks::Store(const Matrix& matrix, int64_t at, TileProducts tile) const {
  const Projection& p = projection_;
  if (p.residual != nullptr && p.post_norm == nullptr) {
    tile.residual = p.residual + at;
    tile.scale = p.residual_scale;
  }
  tile.y = Products(matrix) + at;
  tile.stride = matrix.rows;
  p.kernels->store(tile);
}

uint32_t ProjectionChunks::add_chunks() const { return projection_.post_norm == nullptr ? 0 : quantize_chunks(); }

void ProjectionChunks::Add(uint32_t chunk) const {
  const Projection& p = projection_;
  const int64_t width = p.matrices[0].rows;
  const float* products = Products(p.matrices[0]);
  for (int64_t first = chunk * kChunkRows; first < p.count; first += add_chunks() * kChunkRows) {
    for (int64_t row = first; row < std::min(p.count, first + kChunkRows); ++row) {
      const RowSource branch{products + row * width, p.post_norm, p.post_norm_eps, width};
      p.kernels->add_normalized(branch, p.residual + row * width, p.residual_scale, p.matrices[0].y + row * width);
    }
  }
}

}  // namespace realm
