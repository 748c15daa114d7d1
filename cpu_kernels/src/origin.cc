// What this library was compiled against and from; native.py compares it with the running jaxlib and its own sources.
#include "export.h"
#include "xla/ffi/api/c_api.h"

REALM_EXPORT int realm_ffi_api_major() { return XLA_FFI_API_MAJOR; }

REALM_EXPORT int realm_ffi_api_minor() { return XLA_FFI_API_MINOR; }

REALM_EXPORT const char* realm_sources_digest() { return REALM_SOURCES_DIGEST; }
