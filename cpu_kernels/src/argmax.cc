// The FFI handler of argmax.
#include <cstdint>
#include <cstring>

#include "argmax_chunks.h"
#include "export.h"
#include "float_environment.h"
#include "profile.h"
#include "scratch.h"
#include "thread_pool.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace realm {
namespace {

ffi::Error Argmax(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Result<ffi::Buffer<ffi::S32>> places,
                  int64_t instruction_set, int64_t threads) {
  const auto set = static_cast<InstructionSet>(instruction_set);
  const Kernels* kernels = FindKernels(set);
  if (kernels == nullptr && set != InstructionSet::kNull) {
    return ffi::Error::InvalidArgument("argmax: this CPU lacks the instruction set");
  }
  const auto rows = static_cast<int64_t>(places->element_count());
  const int64_t columns = x.dimensions().back();
  if (rows * columns != static_cast<int64_t>(x.element_count())) {
    return ffi::Error::InvalidArgument("argmax: the result must have one place for each row");
  }
  if (set == InstructionSet::kNull) std::memset(places->typed_data(), 0, places->size_bytes());
  if (set == InstructionSet::kNull || rows == 0) return ffi::Error::Success();
  const CallTimer timer(Handler::kArgmax);
  const FloatEnvironment environment;
  static thread_local Scratch scratch;
  uint8_t* memory = scratch.AtLeast(sizeof(Largest) * static_cast<size_t>(ArgmaxChunks::Pieces(rows, columns)));
  const ArgmaxChunks chunks(*kernels, x.typed_data(), rows, columns, reinterpret_cast<Largest*>(memory));
  ForEachChunk(chunks.chunks(), Helpers(threads, pool), pool, [&](uint32_t i) { chunks.Find(i); });
  chunks.Merge(places->typed_data());
  return ffi::Error::Success();
}

}  // namespace
}  // namespace realm

REALM_EXPORT_HANDLER(realm_argmax);
XLA_FFI_DEFINE_HANDLER_SYMBOL(realm_argmax, realm::Argmax,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Attr<int64_t>("instruction_set")
                                  .Attr<int64_t>("threads"));
