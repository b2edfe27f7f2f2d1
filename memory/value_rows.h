#ifndef MNEME_MEMORY_VALUE_ROWS_H_
#define MNEME_MEMORY_VALUE_ROWS_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace mneme {

// Rows of equal size in append order, for gathering single ones: encoded values, positions, token ids.
// One thread appends at a time; readers may read any row whose number reached them by an acquire load that follows
// the append (a layer's published row count). Rows never move.
class ValueRows {
 public:
  explicit ValueRows(size_t row_bytes) : row_bytes_(row_bytes) {}
  ValueRows(const ValueRows&) = delete;
  ValueRows& operator=(const ValueRows&) = delete;

  size_t row_bytes() const { return row_bytes_; }
  int64_t size() const { return size_.load(std::memory_order_acquire); }

  // Room for `rows` rows in all: until then Append allocates nothing, so it cannot fail.
  void Reserve(int64_t rows);
  void Append(const void* rows, int64_t n);

  const void* Row(int64_t row) const {
    const Place place = PlaceOf(row);
    return arenas_[place.arena].get() + static_cast<size_t>(place.offset) * row_bytes_;
  }

  size_t MemoryBytes() const;

 private:
  // Arena 0 holds kFirst rows, arena i >= 1 holds kFirst * 2^(i - 1): growth doubles and moves nothing.
  static constexpr int64_t kFirst = 256;
  static constexpr size_t kArenas = 48;

  struct Place {
    size_t arena;
    int64_t offset;
  };
  static Place PlaceOf(int64_t row);
  static int64_t ArenaRows(size_t arena) { return arena == 0 ? kFirst : kFirst << (arena - 1); }

  const size_t row_bytes_;
  std::atomic<int64_t> size_{0};
  std::array<std::unique_ptr<char[]>, kArenas> arenas_;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_VALUE_ROWS_H_
