// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_EXCHANGE_EXCHANGE_ROWS_H_
#define MNEME_MEMORY_EXCHANGE_EXCHANGE_ROWS_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "absl/types/span.h"

#include "base/dtype.h"

namespace mneme {

// Rows of one layer between two layouts: the store has the rows of each KV head apart, with a row of kI8 followed by
// its scale; a file has [tokens, kv_heads, dim], and the scales [tokens, kv_heads] in a tensor of their own.
class ExchangeRows {
 public:
  ExchangeRows(DType dtype, int32_t kv_heads, int64_t dim)
      : kv_heads_(static_cast<size_t>(kv_heads)),
        element_bytes_(static_cast<size_t>(dim) * DTypeSize(dtype)),
        row_bytes_(RowBytes(dtype, dim)) {}

  void Resize(int64_t tokens) {
    tokens_ = static_cast<size_t>(tokens);
    elements_.resize(tokens_ * kv_heads_ * element_bytes_);
    scales_.resize(tokens_ * kv_heads_ * scale_bytes());
  }

  int64_t tokens() const { return static_cast<int64_t>(tokens_); }
  size_t row_bytes() const { return row_bytes_; }  // of a stored row
  absl::Span<char> elements() { return absl::MakeSpan(elements_); }
  absl::Span<char> scales() { return absl::MakeSpan(scales_); }  // empty but for kI8

  // Copies the stored rows of one head in or out: `rows` has tokens * row_bytes() bytes.
  void SetHead(int32_t head, absl::Span<const char> rows) {
    for (size_t token = 0; token < tokens_; ++token) {
      const size_t place = token * kv_heads_ + static_cast<size_t>(head);
      const char* row = rows.data() + token * row_bytes_;
      std::memcpy(elements_.data() + place * element_bytes_, row, element_bytes_);
      if (scale_bytes() > 0) std::memcpy(scales_.data() + place * scale_bytes(), row + element_bytes_, scale_bytes());
    }
  }
  void GetHead(int32_t head, absl::Span<char> rows) const {
    for (size_t token = 0; token < tokens_; ++token) {
      const size_t place = token * kv_heads_ + static_cast<size_t>(head);
      char* row = rows.data() + token * row_bytes_;
      std::memcpy(row, elements_.data() + place * element_bytes_, element_bytes_);
      if (scale_bytes() > 0) std::memcpy(row + element_bytes_, scales_.data() + place * scale_bytes(), scale_bytes());
    }
  }

 private:
  size_t scale_bytes() const { return row_bytes_ - element_bytes_; }

  const size_t kv_heads_;
  const size_t element_bytes_;  // of the elements of one row
  const size_t row_bytes_;
  size_t tokens_ = 0;
  std::vector<char> elements_;
  std::vector<char> scales_;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_EXCHANGE_EXCHANGE_ROWS_H_
