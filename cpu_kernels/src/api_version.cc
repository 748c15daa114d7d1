// The FFI API version that this library was compiled against; native.py compares it with that of the running jaxlib.
#include "export.h"
#include "xla/ffi/api/c_api.h"

REALM_EXPORT int realm_ffi_api_major() { return XLA_FFI_API_MAJOR; }

REALM_EXPORT int realm_ffi_api_minor() { return XLA_FFI_API_MINOR; }
