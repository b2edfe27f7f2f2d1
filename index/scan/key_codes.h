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
#include "index/scan/code_kernel.h"

namespace mneme {

// Seven-bit codes of a KeyRows' keys, in blocks that a scan reads at the speed of memory, with bounds on what they
// leave out. docs/design/scan.md has the layout and the arithmetic.
//
// A row's code is made of (row - mean of earlier rows), rotated. Rows are coded by whole blocks, so up to
// kBlockRows - 1 of the newest rows have none.
//
// Extend may be called by any thread at any time; so may everything else. Readers see blocks below the rows() that they
// loaded.
class KeyCodes {
 public:
  static constexpr int64_t kBlockRows = codes::kBlockRows;
  // Rows that share a mean.
  static constexpr int64_t kChunkRows = kBlockRows * codes::kChunkBlocks;

  explicit KeyCodes(int64_t dim);

  int64_t dim() const { return dim_; }
  // dim() up to a multiple of 16: what the kernels work with. The elements behind dim() are zero.
  int64_t coded_dim() const { return coded_dim_; }
  // How many rows have codes, a multiple of kBlockRows.
  int64_t rows() const { return blocks_.size() * kBlockRows; }

  // Codes all whole blocks of `keys`, always the same object. Returns whether any had no codes yet.
  bool Extend(const KeyRows& keys);

  // Takes codes that were kept of earlier rows, in place of making them: of the first `rows` rows, a multiple of
  // kBlockRows; only into an object that has none. `read` fills in means and blocks, which Means and Blocks once gave;
  // an error of its leaves the object as it was.
  using Reader = absl::FunctionRef<absl::Status(absl::Span<char> means, absl::Span<char> blocks)>;
  absl::Status Restore(int64_t rows, Reader read);

  // What is kept of `rows` rows, a multiple of kBlockRows: so many means and blocks, of so many bytes each.
  static int64_t MeansOf(int64_t rows) { return (rows + kChunkRows - 1) / kChunkRows; }
  static int64_t BlocksOf(int64_t rows) { return rows / kBlockRows; }
  size_t mean_bytes() const { return means_.row_bytes(); }
  size_t block_bytes() const { return blocks_.row_bytes(); }

  // Mean row / kChunkRows, and how many from there on lie contiguously.
  const char* Means(int64_t row, int64_t* contiguous) const { return means_.Rows(row / kChunkRows, contiguous); }
  // Block row / kBlockRows, and how many from there on lie contiguously.
  const char* Blocks(int64_t row, int64_t* contiguous) const { return blocks_.Rows(row / kBlockRows, contiguous); }
  // f32 [dim]: what was taken from the rows of row's chunk; and its norm.
  const float* Mean(int64_t row) const { return reinterpret_cast<const float*>(means_.Row(row / kChunkRows)); }
  float MeanNorm(int64_t row) const { return Mean(row)[dim_]; }

  // Bytes of memory held.
  size_t MemoryBytes() const {
    return sizeof(*this) - sizeof(blocks_) - sizeof(means_) + blocks_.MemoryBytes() + means_.MemoryBytes();
  }

 private:
  struct Workspace;  // of one call of Extend

  // f32 [kBlockRows][coded_dim]
  void DecodeBlock(const KeyRows& keys, int64_t first_row, float* rows) const;
  void AppendMean(const KeyRows& keys, int64_t first_row, Workspace& space) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AppendBlock(const KeyRows& keys, int64_t first_row, Workspace& space) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int64_t dim_;
  const int64_t coded_dim_;
  Mutex mutex_;  // of the one who extends
  RowArray means_;
  RowArray blocks_;
};

}  // namespace mneme

#endif  // MNEME_INDEX_SCAN_KEY_CODES_H_
