// Zeros by giving pages back; only Linux promises that they come back as zeros.
#include "zero_pages.h"

#include <cstdint>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace realm {
namespace {

// Whether the whole pages at `address` now read as zeros; memory that is locked or shared cannot be given back.
bool GiveBack(uint8_t* address, size_t bytes) {
#if defined(__linux__)
  return madvise(address, bytes, MADV_DONTNEED) == 0;
#else
  static_cast<void>(address);
  static_cast<void>(bytes);
  return false;
#endif
}

size_t PageBytes() {
#if defined(__linux__)
  return static_cast<size_t>(sysconf(_SC_PAGESIZE));
#else
  return 4096;
#endif
}

}  // namespace

void FillWithZeros(void* memory, size_t bytes) {
  auto* first = static_cast<uint8_t*>(memory);
  const size_t page = PageBytes();
  const size_t before = (page - reinterpret_cast<uintptr_t>(memory) % page) % page;
  const size_t whole = bytes > before ? (bytes - before) / page * page : 0;
  if (whole == 0 || !GiveBack(first + before, whole)) {
    std::memset(memory, 0, bytes);
    return;
  }
  std::memset(first, 0, before);
  std::memset(first + before + whole, 0, bytes - before - whole);
}

}  // namespace realm
