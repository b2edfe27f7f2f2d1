// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_KEY_ROWS_H_
#define MNEME_INDEX_KEY_ROWS_H_

#include <cstdint>

#include "base/dtype.h"
#include "base/row_array.h"

namespace mneme {

// The encoded keys of one layer and KV head of one segment or tail, exactly as the memory stores them.
//
// One thread appends at a time. Any number of threads read meanwhile, rows below the size() that they have read.
class KeyRows {
 public:
  KeyRows(DType dtype, int64_t dim) : dtype_(dtype), dim_(dim), rows_(RowBytes(dtype, dim)) {}

  DType dtype() const { return dtype_; }
  int64_t dim() const { return dim_; }
  int64_t size() const { return rows_.size(); }
  size_t row_bytes() const { return rows_.row_bytes(); }

  // Reserves room for `rows` rows in all, contiguous if there are none yet.
  void Reserve(int64_t rows) { rows_.Reserve(rows); }
  // Appends n encoded rows (RowBytes(dtype, dim) each, contiguous; see EncodeRow in base/dtype.h).
  void Append(const void* encoded_rows, int64_t n) { rows_.Append(encoded_rows, n); }
  // The array itself, for callers that write encoded rows in place.
  RowArray& rows() { return rows_; }

  // The encoded row, and how many rows lie contiguously from there on. Requires: row < size().
  const char* Row(int64_t row) const { return rows_.Row(row); }
  const char* Rows(int64_t row, int64_t* contiguous) const { return rows_.Rows(row, contiguous); }
  // Decodes the row to f32 [dim].
  void Decode(int64_t row, float* destination) const { DecodeRow(dtype_, Row(row), destination, dim_); }

  // Bytes of RAM held.
  size_t MemoryBytes() const { return sizeof(*this) - sizeof(rows_) + rows_.MemoryBytes(); }

 private:
  const DType dtype_;
  const int64_t dim_;
  RowArray rows_;
};

}  // namespace mneme

#endif  // MNEME_INDEX_KEY_ROWS_H_
