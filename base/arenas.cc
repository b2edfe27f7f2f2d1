// SPDX-License-Identifier: Apache-2.0
#include "base/arenas.h"

#include <algorithm>
#include <cstdint>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mneme {
namespace {

constexpr size_t kLine = 64;

}  // namespace

char* AllocateArena(size_t bytes) {
#if defined(__linux__)
  if (bytes >= kHugePage) {
    bytes = PageRoundUp(bytes);
    // Mapped memory is not resident until it is written, and is given back at once when it is freed. One huge page more
    // than needed is mapped and cut off again, so that the arena begins at a huge page.
    const size_t mapped = bytes + kHugePage;
    void* base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) throw std::bad_alloc();
    auto* begin = static_cast<char*>(base);
    const size_t head = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
    if (head > 0) munmap(begin, head);
    if (mapped - head - bytes > 0) munmap(begin + head + bytes, mapped - head - bytes);
    madvise(begin + head, bytes, MADV_HUGEPAGE);  // a hint: kernels without huge pages refuse it
    return begin + head;
  }
#endif
  return static_cast<char*>(::operator new(std::max<size_t>(bytes, 1), std::align_val_t(kLine)));
}

void FreeArena(char* arena, size_t bytes) {
#if defined(__linux__)
  if (bytes >= kHugePage) {
    munmap(arena, PageRoundUp(bytes));
    return;
  }
#endif
  static_cast<void>(bytes);
  ::operator delete(arena, std::align_val_t(kLine));
}

}  // namespace mneme
