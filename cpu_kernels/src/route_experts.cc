// The FFI handler of route.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "export.h"
#include "float_environment.h"
#include "kernels.h"
#include "profile.h"
#include "thread_pool.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace realm {
namespace {

constexpr int64_t kChunkTokens = 16;

ffi::Error Route(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> logits, ffi::Result<ffi::Buffer<ffi::F32>> weights,
                 int64_t chosen, bool normalise, float scale, int64_t instruction_set, int64_t threads) {
  const auto set = static_cast<InstructionSet>(instruction_set);
  const Kernels* kernels = FindKernels(set);
  if (kernels == nullptr && set != InstructionSet::kNull) {
    return ffi::Error::InvalidArgument("route: this CPU lacks the instruction set");
  }
  const Choice choice{logits.dimensions().back(), chosen, normalise, scale};
  if (choice.experts > Choice::kMostExperts || chosen < 1 || chosen > choice.experts ||
      logits.element_count() != weights->element_count()) {
    return ffi::Error::InvalidArgument("route: no such number of experts");
  }
  if (set == InstructionSet::kNull) std::memset(weights->typed_data(), 0, weights->size_bytes());
  if (set == InstructionSet::kNull || logits.element_count() == 0) return ffi::Error::Success();
  const CallTimer timer(Handler::kRoute);
  const FloatEnvironment environment;
  const auto count = static_cast<int64_t>(logits.element_count()) / choice.experts;
  const int64_t chunks = std::min<int64_t>((count + kChunkTokens - 1) / kChunkTokens, Team::kMostChunks);
  const auto route = [&](uint32_t chunk) {
    for (int64_t token = chunk; token < count; token += chunks) {
      const int64_t at = token * choice.experts;
      kernels->route(choice, logits.typed_data() + at, weights->typed_data() + at);
    }
  };
  ForEachChunk(static_cast<uint32_t>(chunks), Helpers(threads, pool), pool, route);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace realm

REALM_EXPORT_HANDLER(realm_route);
XLA_FFI_DEFINE_HANDLER_SYMBOL(realm_route, realm::Route,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("chosen")
                                  .Attr<bool>("normalise")
                                  .Attr<float>("scale")
                                  .Attr<int64_t>("instruction_set")
                                  .Attr<int64_t>("threads"));
