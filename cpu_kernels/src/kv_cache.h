// The layout of one layer's paged KV cache: which bytes hold which key, value and scale.
//
// A block holds `block_size` positions. Each of its kv heads has a plane of keys and one of values:
//
//     block 0: | head 0: keys | head 0: values | head 1: keys | head 1: values | ... |
//     block 1: ...
//
// A position takes R = row_bytes of a plane: its `head_dim` channels, padded to C = a multiple of 16, of E bytes each,
// and in q8_0 also a float16 scale for each 32 channels. Positions are padded to a multiple of 16.
//
// Keys lie in groups of 16 positions, channel after channel, so that the scores of 16 positions are the lanes of a
// register and need no sums across it. Values lie position after position:
//
//     keys, group g at 16 R g:    | channel 0: 16 positions | channel 1 | ... | scales 0..31: 16 positions | ... |
//                                 0                         16 E              16 C
//     values, position p at R p:  | channel 0 | channel 1 | ... | scale of channels 0..31 | ... |
//                                 0           E                 C (q8_0)
//
//     float32   E = 4
//     float16   E = 2, rounded to nearest; infinite from 65520 on
//     bfloat16  E = 2, rounded to nearest
//     q8_0      E = 1: x ~ scale * code, scale = max |x| / 127 of the 32 channels, code an int8 in -127..127; where one
//               of them is not finite, or the scale exceeds float16, all are NaN
//
// Padding is never read as a key or value.
#ifndef CPU_KERNELS_KV_CACHE_H_
#define CPU_KERNELS_KV_CACHE_H_

#include <cstdint>

namespace realm {

constexpr int kLanes = 16;
constexpr int kScaleChannels = 32;

enum class CacheKind : int32_t { kFloat32, kFloat16, kBfloat16, kQ8_0 };
constexpr int kCacheKinds = 4;

constexpr int64_t ElementBytes(CacheKind kind) {
  return kind == CacheKind::kFloat32 ? 4 : kind == CacheKind::kQ8_0 ? 1 : 2;
}

struct CacheGeometry {
  CacheKind kind;
  int64_t block_size;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t channels;   // padded
  int64_t positions;  // of a block, padded
  int64_t row_bytes;
  int64_t plane_bytes;
  int64_t block_bytes;
};

constexpr CacheGeometry MakeCacheGeometry(CacheKind kind, int64_t block_size, int64_t kv_heads, int64_t head_dim) {
  const int64_t channels = (head_dim + kLanes - 1) / kLanes * kLanes;
  const int64_t positions = (block_size + kLanes - 1) / kLanes * kLanes;
  const int64_t scales = kind == CacheKind::kQ8_0 ? (channels + kScaleChannels - 1) / kScaleChannels : 0;
  const int64_t row_bytes = channels * ElementBytes(kind) + 2 * scales;
  const int64_t plane_bytes = positions * row_bytes;
  return {
      kind, block_size, kv_heads, head_dim, channels, positions, row_bytes, plane_bytes, 2 * kv_heads * plane_bytes};
}

}  // namespace realm

#endif  // CPU_KERNELS_KV_CACHE_H_
