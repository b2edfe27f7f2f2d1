// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_ROW_ARRAY_H_
#define MNEME_BASE_ROW_ARRAY_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace mneme {

// Rows of equal size in append order. They never move, so that readers use them while the array grows. Memory comes in
// arenas (base/arenas.h): the first one has room for the first Reserve or Append, and each next one doubles the array,
// so an array of one row takes little more memory than the row.
//
// One thread appends at a time. Any number of threads read meanwhile, rows below the size() that they have read.
class RowArray {
 public:
  explicit RowArray(size_t row_bytes);
  ~RowArray();
  RowArray(const RowArray&) = delete;
  RowArray& operator=(const RowArray&) = delete;

  size_t row_bytes() const { return row_bytes_; }
  int64_t size() const { return size_.load(std::memory_order_acquire); }

  // Makes room for `rows` rows in all, contiguous if the array is empty. Up to that size, Append allocates nothing and
  // cannot fail.
  void Reserve(int64_t rows);
  // Makes room for n more rows.
  void ReserveMore(int64_t n) {
    if (n > room_) Reserve(size_.load(std::memory_order_relaxed) + n);
  }

  void Append(const void* rows, int64_t n);

  // Returns: room for the next row, which the caller writes and then publishes. For rows that are computed in place.
  void* Next();
  void Publish() { Publish(1); }

  // The same for the first n rows of an empty array, contiguous. Requires: n >= 1.
  char* First(int64_t n);
  void Publish(int64_t n) {
    size_.store(size_.load(std::memory_order_relaxed) + n, std::memory_order_release);
    Advance(n);
  }

  // Returns: room for row size() + ahead, which the caller writes and then publishes, and how many rows lie
  // contiguously from there on. Requires: there is room for that row.
  char* Unpublished(int64_t ahead, int64_t* contiguous) {
    if (ahead < room_) {
      *contiguous = room_ - ahead;
      return next_ + static_cast<size_t>(ahead) * row_bytes_;
    }
    return const_cast<char*>(Rows(size_.load(std::memory_order_relaxed) + ahead, contiguous));
  }

  const char* Row(int64_t row) const {
    int64_t contiguous;
    return Rows(row, &contiguous);
  }
  // The same, and how many rows lie contiguously from there on, at least 1. They may be more than size() has.
  const char* Rows(int64_t row, int64_t* contiguous) const;

  // Bytes of memory held: allocations, and those pages of mapped arenas that were written.
  size_t MemoryBytes() const;

 private:
  // Arena 0 has `first` rows, arena i >= 1 has first * 2^(i-1): row r < first lies in arena 0, any other in arena
  // bit_width(r / first). An arena's pointer is published before the size() that covers it.
  static constexpr int kArenas = 48;
  static constexpr int kOwnArenas = 3;  // the others' pointers are allocated when they are needed
  using ArenaTable = std::atomic<char*>[kArenas - kOwnArenas];

  std::atomic<char*>& Arena(int arena) {
    return arena < kOwnArenas ? arenas_[arena] : (*more_arenas_.load(std::memory_order_acquire))[arena - kOwnArenas];
  }
  char* ArenaStart(int arena) const {
    return const_cast<RowArray*>(this)->Arena(arena).load(std::memory_order_acquire);
  }
  static int64_t FirstArenaRows(int64_t rows, size_t row_bytes);

  // Moves next_ on by n rows.
  void Advance(int64_t n) {
    if (n < room_) {
      next_ += static_cast<size_t>(n) * row_bytes_;
      room_ -= n;
    } else {
      room_ = 0;
    }
  }
  // Sets next_ and room_, if there is room.
  void FindRoom();

  static int64_t Begin(int64_t first, int arena) { return arena == 0 ? 0 : first << (arena - 1); }
  static int64_t End(int64_t first, int arena) { return first << arena; }

  const size_t row_bytes_;
  std::atomic<int64_t> size_{0};
  // Used by the appending thread alone: where the next row goes, and for how many rows there is room; 0 if not known.
  // They lie beside size_, because one row is often appended to each of very many arrays: fewer cache lines are
  // touched.
  char* next_ = nullptr;
  int64_t room_ = 0;
  int used_ = 0;                   // number of arenas; used by the appending thread alone
  std::atomic<int64_t> first_{0};  // 0: nothing allocated yet
  std::atomic<char*> arenas_[kOwnArenas] = {};
  std::atomic<ArenaTable*> more_arenas_{nullptr};
};

}  // namespace mneme

#endif  // MNEME_BASE_ROW_ARRAY_H_
