#include "base/row_array.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mneme {
namespace {

constexpr int64_t kFirstRows = 256;
constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;

size_t PageRoundUp(size_t bytes) { return (bytes + 4095) & ~size_t{4095}; }

// Memory that costs nothing until it is written.
char* AllocateArena(size_t bytes) {
#if defined(__linux__)
  if (bytes >= kHugePage) {
    bytes = PageRoundUp(bytes);
    // Straight from the kernel: not touched, and given back at once when freed. One huge page more than asked,
    // cut to an aligned piece.
    const size_t mapped = bytes + kHugePage;
    void* base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) throw std::bad_alloc();
    auto* begin = static_cast<char*>(base);
    const size_t head = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
    if (head > 0) munmap(begin, head);
    if (mapped - head - bytes > 0) munmap(begin + head + bytes, mapped - head - bytes);
    madvise(begin + head, bytes, MADV_HUGEPAGE);  // a wish; kernels without huge pages refuse it
    return begin + head;
  }
#endif
  return static_cast<char*>(::operator new(std::max<size_t>(bytes, 1), std::align_val_t(kAlignment)));
}

void FreeArena(char* arena, size_t bytes) {
#if defined(__linux__)
  if (bytes >= kHugePage) {
    munmap(arena, PageRoundUp(bytes));
    return;
  }
#endif
  static_cast<void>(bytes);
  ::operator delete(arena, std::align_val_t(kAlignment));
}

}  // namespace

RowArray::RowArray(size_t row_bytes) : row_bytes_(row_bytes) {}

RowArray::~RowArray() {
  const int64_t first = first_.load(std::memory_order_relaxed);
  for (int i = 0; i < used_; ++i) {
    FreeArena(arenas_[i].load(std::memory_order_relaxed),
              static_cast<size_t>(End(first, i) - Begin(first, i)) * row_bytes_);
  }
}

void RowArray::Reserve(int64_t rows) {
  if (rows <= 0) return;
  int64_t first = first_.load(std::memory_order_relaxed);
  if (first == 0) {
    first = std::max(rows, kFirstRows);
    first_.store(first, std::memory_order_release);
  }
  while (used_ == 0 || End(first, used_ - 1) < rows) {
    const auto more = static_cast<size_t>(End(first, used_) - Begin(first, used_));
    arenas_[used_].store(AllocateArena(more * row_bytes_), std::memory_order_release);
    ++used_;
  }
}

void RowArray::Append(const void* rows, int64_t n) {
  if (n <= 0) return;
  const auto* source = static_cast<const char*>(rows);
  int64_t row = size_.load(std::memory_order_relaxed);
  const int64_t end = row + n;
  Reserve(end);
  while (row < end) {
    int64_t contiguous;
    auto* to = const_cast<char*>(Rows(row, &contiguous));
    const int64_t count = std::min(contiguous, end - row);
    const size_t bytes = static_cast<size_t>(count) * row_bytes_;
    std::memcpy(to, source, bytes);
    source += bytes;
    row += count;
  }
  size_.store(end, std::memory_order_release);
}

void* RowArray::Next() {
  const int64_t row = size_.load(std::memory_order_relaxed);
  Reserve(row + 1);
  return const_cast<char*>(Row(row));
}

char* RowArray::First(int64_t n) {
  Reserve(n);
  int64_t contiguous;
  auto* rows = const_cast<char*>(Rows(0, &contiguous));
  // An earlier, smaller Reserve would have made the first piece too short: nobody does that.
  assert(size() == 0 && contiguous >= n);
  return rows;
}

const char* RowArray::Rows(int64_t row, int64_t* contiguous) const {
  const int64_t first = first_.load(std::memory_order_acquire);
  const int arena = row < first ? 0 : static_cast<int>(std::bit_width(static_cast<uint64_t>(row / first)));
  *contiguous = End(first, arena) - row;
  return arenas_[arena].load(std::memory_order_acquire) + static_cast<size_t>(row - Begin(first, arena)) * row_bytes_;
}

size_t RowArray::MemoryBytes() const {
  size_t bytes = sizeof(*this);
  const int64_t rows = size();
  const int64_t first = first_.load(std::memory_order_acquire);
  // What has been written, in the pages that the kernel gives for it; arenas not yet reached are not resident.
  for (int i = 0; i < kArenas && rows > 0 && Begin(first, i) < rows; ++i) {
    const int64_t begin = Begin(first, i);
    const size_t all = static_cast<size_t>(End(first, i) - begin) * row_bytes_;
    const size_t written = static_cast<size_t>(std::min(rows, End(first, i)) - begin) * row_bytes_;
    const size_t page = all >= kHugePage ? kHugePage : 4096;
    bytes += std::min((written + page - 1) / page * page, PageRoundUp(all));
  }
  return bytes;
}

}  // namespace mneme
