// Memory that is filled with zeros reads as zeros, and its neighbours stay.
#include "zero_pages.h"

#include <cstdint>
#include <cstring>
#include <vector>

#include "check.h"

namespace realm::test {
namespace {

REALM_TEST(ZerosFromAnyByteOn) {
  constexpr size_t kPage = 4096;
  for (size_t bytes : {size_t{0}, size_t{1}, size_t{100}, kPage, 2 * kPage - 1, 5 * kPage + 7, 300 * kPage}) {
    for (size_t offset : {size_t{0}, size_t{1}, size_t{64}, kPage - 1, kPage}) {
      std::vector<uint8_t> memory(bytes + offset + 3 * kPage, 7);
      FillWithZeros(memory.data() + offset, bytes);
      size_t wrong = 0;
      for (size_t i = 0; i < memory.size(); ++i) {
        const bool inside = i >= offset && i < offset + bytes;
        wrong += memory[i] != (inside ? 0 : 7);
      }
      Check(wrong == 0, wrong, " wrong bytes of ", bytes, " from byte ", offset);
      std::memset(memory.data(), 9, memory.size());  // what was given back can be written
    }
  }
}

}  // namespace
}  // namespace realm::test
