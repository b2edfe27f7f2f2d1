// SPDX-License-Identifier: Apache-2.0
#include "base/row_array.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>

#include "base/arenas.h"

namespace mneme {
namespace {

// Above this size arenas end at the same rows however small the first one was, and are long enough for any scan.
constexpr int64_t kPieceRows = 256;

// What aligning an allocation to 64 bytes leaves unused, on average.
constexpr size_t kAlignmentSlack = 16;

// The least first arena: two cache lines.
constexpr size_t kLeastBytes = 128;

}  // namespace

int64_t RowArray::FirstArenaRows(int64_t rows, size_t row_bytes) {
  if (rows >= kPieceRows) return rows;
  const size_t least = (kLeastBytes + row_bytes - 1) / row_bytes;
  const size_t wanted = std::bit_ceil(std::max(static_cast<size_t>(rows), least));
  return std::min(static_cast<int64_t>(wanted), kPieceRows);
}

RowArray::RowArray(size_t row_bytes) : row_bytes_(row_bytes) {}

RowArray::~RowArray() {
  const int64_t first = first_.load(std::memory_order_relaxed);
  for (int i = 0; i < used_; ++i) {
    FreeArena(ArenaStart(i), static_cast<size_t>(End(first, i) - Begin(first, i)) * row_bytes_);
  }
  delete[] more_arenas_.load(std::memory_order_relaxed);
}

void RowArray::Reserve(int64_t rows) {
  if (rows <= 0) return;
  int64_t first = first_.load(std::memory_order_relaxed);
  if (first == 0) {
    first = FirstArenaRows(rows, row_bytes_);
    first_.store(first, std::memory_order_release);
  }
  while (used_ == 0 || End(first, used_ - 1) < rows) {
    const auto more = static_cast<size_t>(End(first, used_) - Begin(first, used_));
    if (used_ == kOwnArenas && more_arenas_.load(std::memory_order_relaxed) == nullptr) {
      more_arenas_.store(new ArenaTable[1](), std::memory_order_release);
    }
    Arena(used_).store(AllocateArena(more * row_bytes_), std::memory_order_release);
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
  // The first arena has room for all of them, unless a smaller Reserve came before, which no caller does.
  assert(size() == 0 && contiguous >= n);
  return rows;
}

const char* RowArray::Rows(int64_t row, int64_t* contiguous) const {
  const int64_t first = first_.load(std::memory_order_acquire);
  const int arena = row < first ? 0 : static_cast<int>(std::bit_width(static_cast<uint64_t>(row / first)));
  *contiguous = End(first, arena) - row;
  return ArenaStart(arena) + static_cast<size_t>(row - Begin(first, arena)) * row_bytes_;
}

size_t RowArray::MemoryBytes() const {
  size_t bytes = sizeof(*this);
  if (more_arenas_.load(std::memory_order_acquire) != nullptr) bytes += AllocatedBytes(sizeof(ArenaTable));
  const int64_t rows = size();
  const int64_t first = first_.load(std::memory_order_acquire);
  // An arena without rows is either mapped, so not resident, or an append has just allocated it.
  for (int i = 0; i < kArenas && rows > 0 && Begin(first, i) < rows; ++i) {
    const int64_t begin = Begin(first, i);
    const size_t all = static_cast<size_t>(End(first, i) - begin) * row_bytes_;
    if (all < kHugePage) {
      bytes += AllocatedBytes(all) + kAlignmentSlack;
      continue;
    }
    const size_t written = static_cast<size_t>(std::min(rows, End(first, i)) - begin) * row_bytes_;
    bytes += std::min((written + kHugePage - 1) / kHugePage * kHugePage, PageRoundUp(all));
  }
  return bytes;
}

}  // namespace mneme
