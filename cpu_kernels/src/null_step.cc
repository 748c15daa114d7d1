// Handlers with the signatures of a step's kernels and none of their arithmetic: what a step takes with them is
// dispatch.
#include <cstdint>
#include <cstring>

#include "export.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// out[..., rows] = 0, whatever x and weight hold.
ffi::Error NullMatmul(ffi::AnyBuffer /*x*/, ffi::AnyBuffer /*weight*/, ffi::Result<ffi::AnyBuffer> out) {
  std::memset(out->untyped_data(), 0, out->size_bytes());
  return ffi::Error::Success();
}

// cache[slot, 0] = k, cache[slot, 1] = v for each token whose slot lies inside the cache; out = 0.
//
// The cache is one buffer, shared by the argument and the result:
//
//     slot 0: | k: kv_heads x head_dim | v: kv_heads x head_dim |
//     slot 1: | ...
ffi::Error NullAttention(ffi::AnyBuffer /*q*/, ffi::AnyBuffer k, ffi::AnyBuffer v, ffi::AnyBuffer cache,
                         ffi::Buffer<ffi::S32> slot_mapping, ffi::Result<ffi::AnyBuffer> out,
                         ffi::Result<ffi::AnyBuffer> new_cache) {
  if (cache.untyped_data() != new_cache->untyped_data()) {
    return ffi::Error::Internal("null_attention: the cache was copied instead of updated in place");
  }
  std::memset(out->untyped_data(), 0, out->size_bytes());

  const int64_t slots = cache.dimensions()[0];
  const int64_t tokens = slot_mapping.dimensions()[0];
  if (slots == 0 || tokens == 0) return ffi::Error::Success();
  const size_t row = cache.size_bytes() / slots;
  const size_t half = row / 2;
  auto* rows = static_cast<char*>(new_cache->untyped_data());
  const auto* keys = static_cast<const char*>(k.untyped_data());
  const auto* values = static_cast<const char*>(v.untyped_data());
  for (int64_t token = 0; token < tokens; ++token) {
    const int64_t slot = slot_mapping.typed_data()[token];
    if (slot < 0 || slot >= slots) continue;
    std::memcpy(rows + slot * row, keys + token * half, half);
    std::memcpy(rows + slot * row + half, values + token * half, half);
  }
  return ffi::Error::Success();
}

}  // namespace

REALM_EXPORT_HANDLER(realm_null_matmul);
XLA_FFI_DEFINE_HANDLER_SYMBOL(realm_null_matmul, NullMatmul,
                              ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());

REALM_EXPORT_HANDLER(realm_null_attention);
XLA_FFI_DEFINE_HANDLER_SYMBOL(realm_null_attention, NullAttention,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());
