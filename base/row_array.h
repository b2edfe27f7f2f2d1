// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_ROW_ARRAY_H_
#define MNEME_BASE_ROW_ARRAY_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace mneme {

// Rows of equal size in append order that never move once written: the growing part of a memory that readers look at
// while it grows. The first arena has room for what is asked for first, and the arrays double in size from there, so
// that an array of one row costs little more than the row. Arenas begin at multiples of 64 bytes and ask for huge pages
// where that helps; large ones are resident only once rows are written to them.
//
// One thread appends at a time; any number read meanwhile, rows below the size() that they loaded.
class RowArray {
 public:
  explicit RowArray(size_t row_bytes);
  ~RowArray();
  RowArray(const RowArray&) = delete;
  RowArray& operator=(const RowArray&) = delete;

  size_t row_bytes() const { return row_bytes_; }
  int64_t size() const { return size_.load(std::memory_order_acquire); }

  // Room for `rows` rows in all, in one piece if the array is empty. Until then Append allocates nothing, so it cannot
  // fail.
  void Reserve(int64_t rows);
  // Room for n rows behind those that there are.
  void ReserveMore(int64_t n) {
    if (n > room_) Reserve(size_.load(std::memory_order_relaxed) + n);
  }

  void Append(const void* rows, int64_t n);

  // Room for one row more, to be written in place and then published. For rows that are computed, not copied.
  void* Next();
  void Publish() { Publish(1); }

  // The same for the first n >= 1 rows of an empty array, in one piece. For rows that are read from elsewhere.
  char* First(int64_t n);
  void Publish(int64_t n) {
    size_.store(size_.load(std::memory_order_relaxed) + n, std::memory_order_release);
    Advance(n);
  }

  // The place of the row that is `ahead` rows behind the last one, within what is reserved, to be written and then
  // published; and how many from there on lie contiguously.
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
  // The same, and how many rows from there on (>= 1, up to capacity) lie contiguously.
  const char* Rows(int64_t row, int64_t* contiguous) const;

  // Bytes of memory held: what was allocated, and of arenas that are mapped the pages that were written.
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

  // The last row is n rows further on.
  void Advance(int64_t n) {
    if (n < room_) {
      next_ += static_cast<size_t>(n) * row_bytes_;
      room_ -= n;
    } else {
      room_ = 0;
    }
  }
  // Finds next_ and room_ anew, if there is room.
  void FindRoom();

  static int64_t Begin(int64_t first, int arena) { return arena == 0 ? 0 : first << (arena - 1); }
  static int64_t End(int64_t first, int arena) { return first << arena; }

  const size_t row_bytes_;
  std::atomic<int64_t> size_{0};
  // The writer's own: where the next row goes, and how many lie there contiguously; 0 if that is not known. Beside the
  // size, since one row a call is written to each of very many arrays: the fewer lines of memory, the better.
  char* next_ = nullptr;
  int64_t room_ = 0;
  int used_ = 0;                   // arenas; the writer's own
  std::atomic<int64_t> first_{0};  // 0: nothing allocated yet
  std::atomic<char*> arenas_[kOwnArenas] = {};
  std::atomic<ArenaTable*> more_arenas_{nullptr};
};

}  // namespace mneme

#endif  // MNEME_BASE_ROW_ARRAY_H_
