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

void ValueRows::Append(const void* rows, int64_t n) {
  const auto* source = static_cast<const char*>(rows);
  while (n > 0) {
    const Place place = PlaceOf(size_);
    std::unique_ptr<char[]>& arena = arenas_[place.arena];
    // Uninitialised on purpose: pages that hold no row yet cost no memory.
    if (arena == nullptr) arena.reset(new char[static_cast<size_t>(ArenaRows(place.arena)) * row_bytes_]);
    const int64_t fits = std::min(n, ArenaRows(place.arena) - place.offset);
    const size_t bytes = static_cast<size_t>(fits) * row_bytes_;
    std::memcpy(arena.get() + static_cast<size_t>(place.offset) * row_bytes_, source, bytes);
    source += bytes;
    size_ += fits;
    n -= fits;
  }
}

size_t ValueRows::MemoryBytes() const { return static_cast<size_t>(size_) * row_bytes_; }

}  // namespace mneme
