#ifndef MNEME_INDEX_KEY_ROWS_H_
#define MNEME_INDEX_KEY_ROWS_H_

#include <atomic>
#include <cstdint>
#include <memory>

#include "base/dtype.h"

namespace mneme {

// Keys of one layer and KV head of one segment or tail, in the layout that a scan reads: blocks of kLanes rows,
// [dim][kLanes] elements each, so that one vector load holds one dimension of kLanes keys (kI8: followed by the
// kLanes scales). docs/scan.md has a picture.
//
// One thread appends at a time; any number read meanwhile. A reader sees rows below the size() that it loaded;
// rows never move once written.
class KeyRows {
 public:
  static constexpr int64_t kLanes = 16;

  KeyRows(DType dtype, int64_t dim);
  ~KeyRows();
  KeyRows(const KeyRows&) = delete;
  KeyRows& operator=(const KeyRows&) = delete;

  DType dtype() const { return dtype_; }
  int64_t dim() const { return dim_; }
  int64_t size() const { return size_.load(std::memory_order_acquire); }

  // Room for `rows` rows in all, in one piece if the object is empty.
  void Reserve(int64_t rows);

  // Appends n encoded rows (RowBytes(dtype, dim) each, contiguous; see EncodeRow in base/dtype.h).
  void Append(const void* encoded_rows, int64_t n);

  // Row `row` < size(), encoded as it was appended, bit for bit; or decoded to f32 [dim].
  void CopyRow(int64_t row, void* encoded_row) const;
  void DecodeRow(int64_t row, float* destination) const;

  // Bytes of memory held.
  size_t MemoryBytes() const;

  // For kernels. Blocks from `block` on that lie contiguously in memory, and how many there are (>= 1) up to
  // capacity. Lanes of rows at or above size() must not be read: another thread may be writing them.
  const void* Blocks(int64_t block, int64_t* contiguous) const;
  size_t block_bytes() const { return block_bytes_; }

 private:
  // implementation's own: arenas that double in size, so that growth moves nothing
  struct Arenas;

  const DType dtype_;
  const int64_t dim_;
  const size_t block_bytes_;
  std::atomic<int64_t> size_{0};
  std::unique_ptr<Arenas> arenas_;
};

}  // namespace mneme

#endif  // MNEME_INDEX_KEY_ROWS_H_
