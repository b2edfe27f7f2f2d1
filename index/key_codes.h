#ifndef MNEME_INDEX_KEY_CODES_H_
#define MNEME_INDEX_KEY_CODES_H_

#include <cstdint>

#include "base/mutex.h"
#include "base/row_array.h"
#include "index/code_kernel.h"
#include "index/key_rows.h"

namespace mneme {

// Seven-bit codes of a KeyRows' keys, in blocks that a scan reads at the speed of memory, with bounds on what they leave
// out. docs/scan.md has the layout and the arithmetic.
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
  static constexpr int64_t kChunkRows = 256;

  explicit KeyCodes(int64_t dim);

  int64_t dim() const { return dim_; }
  // dim() up to a multiple of 16: what the kernels work with. The elements behind dim() are zero.
  int64_t coded_dim() const { return coded_dim_; }
  // How many rows have codes, a multiple of kBlockRows.
  int64_t rows() const { return blocks_.size() * kBlockRows; }

  // Codes all whole blocks of `keys`, always the same object.
  void Extend(const KeyRows& keys);

  // Block row / kBlockRows, and how many from there on lie contiguously.
  const char* Blocks(int64_t row, int64_t* contiguous) const { return blocks_.Rows(row / kBlockRows, contiguous); }
  // f32 [dim]: what was taken from the rows of row's chunk; and its norm.
  const float* Mean(int64_t row) const { return reinterpret_cast<const float*>(means_.Row(row / kChunkRows)); }
  float MeanNorm(int64_t row) const { return Mean(row)[dim_]; }

  // Bytes of memory held.
  size_t MemoryBytes() const { return blocks_.MemoryBytes() + means_.MemoryBytes(); }

 private:
  // key: f32 [coded_dim], scratch.
  void AppendMean(const KeyRows& keys, int64_t first_row, float* key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AppendBlock(const KeyRows& keys, int64_t first_row, float* key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int64_t dim_;
  const int64_t coded_dim_;
  Mutex mutex_;  // of the one who extends
  RowArray means_;
  RowArray blocks_;
};

}  // namespace mneme

#endif  // MNEME_INDEX_KEY_CODES_H_
