// The FFI handler of zeros.
#include "export.h"
#include "xla/ffi/api/ffi.h"
#include "zero_pages.h"

namespace ffi = xla::ffi;

namespace realm {
namespace {

ffi::Error Zeros(ffi::RemainingRets results) {
  for (size_t i = 0; i < results.size(); ++i) {
    auto result = results.get<ffi::AnyBuffer>(i);
    if (!result.has_value()) return ffi::Error::InvalidArgument("zeros: a result is no buffer");
    FillWithZeros((*result)->untyped_data(), (*result)->size_bytes());
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace realm

REALM_EXPORT_HANDLER(realm_zeros);
XLA_FFI_DEFINE_HANDLER_SYMBOL(realm_zeros, realm::Zeros, ffi::Ffi::Bind().RemainingRets());
