#include "base/row_array.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>

#include "base/arenas.h"

namespace mneme {
namespace {

constexpr int64_t kFirstRows = 256;

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
  if (room_ == 0) FindRoom();
}

void RowArray::FindRoom() {
  const int64_t size = size_.load(std::memory_order_relaxed);
  if (used_ > 0 && size < End(first_.load(std::memory_order_relaxed), used_ - 1)) {
    next_ = const_cast<char*>(Rows(size, &room_));
  }
}

void RowArray::Append(const void* rows, int64_t n) {
  if (n <= 0) return;
  const auto* source = static_cast<const char*>(rows);
  ReserveMore(n);
  for (int64_t done = 0; done < n;) {
    int64_t contiguous;
    char* to = Unpublished(done, &contiguous);
    const int64_t count = std::min(contiguous, n - done);
    const size_t bytes = static_cast<size_t>(count) * row_bytes_;
    std::memcpy(to, source, bytes);
    source += bytes;
    done += count;
  }
  Publish(n);
}

void* RowArray::Next() {
  ReserveMore(1);
  int64_t contiguous;
  return Unpublished(0, &contiguous);
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
    const size_t page = all >= kHugePage ? kHugePage : kPage;
    bytes += std::min((written + page - 1) / page * page, PageRoundUp(all));
  }
  return bytes;
}

}  // namespace mneme
