// The FFI handler of rope_table: cosines and sines that do not depend on how many are asked for at a time.
#include <cmath>
#include <cstdint>

#include "export.h"
#include "float_environment.h"
#include "profile.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace realm {
namespace {

ffi::Error RopeTable(ffi::Buffer<ffi::S32> positions, ffi::Buffer<ffi::F32> frequencies,
                     ffi::Result<ffi::Buffer<ffi::F32>> cos, ffi::Result<ffi::Buffer<ffi::F32>> sin, double factor) {
  const CallTimer timer(Handler::kRopeTable);
  const FloatEnvironment environment;
  const auto pairs = static_cast<int64_t>(frequencies.element_count());
  const auto tokens = static_cast<int64_t>(positions.element_count());
  for (int64_t i = 0; i < tokens * pairs; ++i) {
    const int64_t token = i / pairs;
    const double angle =
        static_cast<double>(positions.typed_data()[token]) * static_cast<double>(frequencies.typed_data()[i % pairs]);
    cos->typed_data()[i] = static_cast<float>(std::cos(angle) * factor);
    sin->typed_data()[i] = static_cast<float>(std::sin(angle) * factor);
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace realm

REALM_EXPORT_HANDLER(realm_rope_table);
XLA_FFI_DEFINE_HANDLER_SYMBOL(realm_rope_table, realm::RopeTable,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<double>("factor"));
