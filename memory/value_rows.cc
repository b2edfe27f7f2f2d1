#include "memory/value_rows.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace mneme {

ValueRows::Place ValueRows::PlaceOf(int64_t row) {
  if (row < kFirst) return {0, row};
  const auto arena = static_cast<size_t>(std::bit_width(static_cast<uint64_t>(row / kFirst)));
  return {arena, row - (kFirst << (arena - 1))};
}

void ValueRows::Reserve(int64_t rows) {
  if (rows <= 0) return;
  const size_t last = PlaceOf(rows - 1).arena;
  for (size_t i = 0; i <= last; ++i) {
    // Uninitialised on purpose: pages that hold no row yet cost no memory.
    if (arenas_[i] == nullptr) arenas_[i].reset(new char[static_cast<size_t>(ArenaRows(i)) * row_bytes_]);
  }
}

void ValueRows::Append(const void* rows, int64_t n) {
  const auto* source = static_cast<const char*>(rows);
  int64_t size = size_.load(std::memory_order_relaxed);
  Reserve(size + n);
  while (n > 0) {
    const Place place = PlaceOf(size);
    const int64_t fits = std::min(n, ArenaRows(place.arena) - place.offset);
    const size_t bytes = static_cast<size_t>(fits) * row_bytes_;
    std::memcpy(arenas_[place.arena].get() + static_cast<size_t>(place.offset) * row_bytes_, source, bytes);
    source += bytes;
    size += fits;
    n -= fits;
  }
  size_.store(size, std::memory_order_release);
}

size_t ValueRows::MemoryBytes() const { return static_cast<size_t>(size()) * row_bytes_; }

}  // namespace mneme
