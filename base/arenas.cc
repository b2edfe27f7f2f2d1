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

#if defined(__linux__)
// Straight from the kernel: not touched, and given back at once when freed. One huge page more than asked, cut to a
// piece aligned to them. Null if there is none. `bytes` is a whole number of pages.
char* MapAligned(size_t bytes, bool ask_for_huge_pages) {
  const size_t mapped = bytes + kHugePage;
  void* base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  auto* begin = static_cast<char*>(base);
  const size_t head = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  if (head > 0) munmap(begin, head);
  if (mapped - head - bytes > 0) munmap(begin + head + bytes, mapped - head - bytes);
  if (ask_for_huge_pages) madvise(begin + head, bytes, MADV_HUGEPAGE);  // a wish; kernels without them refuse it
  return begin + head;
}
#endif

}  // namespace

char* AllocateArena(size_t bytes) {
#if defined(__linux__)
  if (bytes >= kHugePage) {
    char* const arena = MapAligned(PageRoundUp(bytes), true);
    if (arena == nullptr) throw std::bad_alloc();
    return arena;
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

ArenaSource::~ArenaSource() {
#if defined(__linux__)
  if (left_ > 0) munmap(next_, left_);
#endif
}

char* ArenaSource::Cut([[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  // What is cut off at its end is little of so much.
  constexpr size_t kMapped = 8 * kHugePage;
  MutexLock lock(&mutex_);
  asked_ += bytes;
  if (asked_ < kHugePage || bytes >= kHugePage) return nullptr;
  const size_t cut = CutBytes(bytes);
  if (left_ < cut) {
    char* const mapped = MapAligned(kMapped, false);
    if (mapped == nullptr) return nullptr;
    if (left_ > 0) munmap(next_, left_);
    next_ = mapped;
    left_ = kMapped;
  }
  char* const piece = next_ + pieces_++ * 5 * kLine % kPage;  // 5: two lines of a row and more, and no divisor of 64
  next_ += cut;
  left_ -= cut;
  return piece;
#else
  return nullptr;
#endif
}

void ArenaSource::GiveBack([[maybe_unused]] char* piece, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  munmap(piece - reinterpret_cast<uintptr_t>(piece) % kPage, CutBytes(bytes));
#endif
}

}  // namespace mneme
