// What the Python side may look up in the shared library; every other symbol is hidden.
#ifndef CPU_KERNELS_EXPORT_H_
#define CPU_KERNELS_EXPORT_H_

#define REALM_EXPORT extern "C" __attribute__((visibility("default")))

// XLA's macro that defines a handler gives it the visibility of its first declaration: this one. Needs XLA's headers.
#define REALM_EXPORT_HANDLER(name) REALM_EXPORT XLA_FFI_Error* name(XLA_FFI_CallFrame*)

#endif  // CPU_KERNELS_EXPORT_H_
