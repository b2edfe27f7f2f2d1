// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_KEY_CODES_H_
#define MNEME_INDEX_SCAN_KEY_CODES_H_

#include <cstddef>
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"

#include "base/mutex.h"
#include "base/row_array.h"
#include "index/key_rows.h"
#include "index/scan/code_block.h"

namespace mneme {

// Seven-bit codes of the keys of one KeyRows, in blocks that a scan reads at the speed of RAM, with bounds of what the
// codes leave out (code_block.h; docs/design/scan.md has the arithmetic). A row's code is made of the key minus a
// mean of earlier rows, rotated. Rows are coded by whole blocks, so the newest rows, up to kBlockRows - 1, have no
// codes.
//
// Thread-safe. A reader sees the blocks of the rows() that it has read.
class KeyCodes {
 public:
  static constexpr int64_t kBlockRows = codes::kBlockRows;
  // Rows that share a mean.
  static constexpr int64_t kChunkRows = kBlockRows * codes::kChunkBlocks;

  explicit KeyCodes(int64_t dim);

  int64_t dim() const { return dim_; }
  // dim(), rounded up to a multiple of kTileDims. The coded elements from dim() on are zero.
  int64_t coded_dim() const { return coded_dim_; }
  // The number of rows that have codes, a multiple of kBlockRows.
  int64_t rows() const { return blocks_.size() * kBlockRows; }

  // Codes all whole blocks of `keys`. Requires: `keys` is the same object in every call. Returns: whether any block was
  // new.
  bool Extend(const KeyRows& keys);

  // Codes all rows of `keys`, and subtracts from each chunk its own mean instead of the previous chunk's: for keys that
  // will not grow. Requires: there are no codes yet; the number of rows is a multiple of kBlockRows.
  void EncodeAll(const KeyRows& keys);

  // Takes over stored codes of the first `rows` rows instead of making them. `read` fills the means and blocks that
  // Means and Blocks gave when the codes were stored. Requires: there are no codes yet; `rows` is a multiple of
  // kBlockRows.
  // Errors: those of `read`, which leave the object unchanged.
  using Reader = absl::FunctionRef<absl::Status(absl::Span<char> means, absl::Span<char> blocks)>;
  absl::Status Restore(int64_t rows, Reader read);

  // How many means and blocks `rows` rows have, a multiple of kBlockRows, and the bytes of each.
  static int64_t MeansOf(int64_t rows) { return (rows + kChunkRows - 1) / kChunkRows; }
  static int64_t BlocksOf(int64_t rows) { return rows / kBlockRows; }
  size_t mean_bytes() const { return means_.row_bytes(); }
  size_t block_bytes() const { return blocks_.row_bytes(); }

  // The stored mean of the chunk of `row` (mean_bytes() each), and how many means lie contiguously from there on.
  const char* Means(int64_t row, int64_t* contiguous) const { return means_.Rows(row / kChunkRows, contiguous); }
  // The block of `row` (code_block.h), and how many blocks lie contiguously from there on.
  const char* Blocks(int64_t row, int64_t* contiguous) const { return blocks_.Rows(row / kBlockRows, contiguous); }
  // f32 [dim]: the mean that was subtracted from the rows of row's chunk.
  const float* Mean(int64_t row) const { return reinterpret_cast<const float*>(means_.Row(row / kChunkRows)); }
  // An upper bound of its norm.
  float MeanNorm(int64_t row) const { return Mean(row)[dim_]; }

  // Bytes of RAM held.
  size_t MemoryBytes() const {
    return sizeof(*this) - sizeof(blocks_) - sizeof(means_) + blocks_.MemoryBytes() + means_.MemoryBytes();
  }

 private:
  struct Workspace;  // the temporary arrays of one call of Extend

  // rows: f32 [kBlockRows][coded_dim], the keys from first_row on. Elements from dim on are left as they are.
  void DecodeBlock(const KeyRows& keys, int64_t first_row, float* rows) const;
  // Appends the mean of rows [begin, end), whole blocks.
  void AppendMean(const KeyRows& keys, int64_t begin, int64_t end, Workspace& space)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AppendBlock(const KeyRows& keys, int64_t first_row, Workspace& space) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int64_t dim_;
  const int64_t coded_dim_;
  Mutex mutex_;     // held while codes are appended
  RowArray means_;  // f32 [dim + 1]: the mean, then its norm
  RowArray blocks_;
};

}  // namespace mneme

#endif  // MNEME_INDEX_SCAN_KEY_CODES_H_
