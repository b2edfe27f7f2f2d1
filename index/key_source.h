// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_KEY_SOURCE_H_
#define MNEME_INDEX_KEY_SOURCE_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"

#include "base/dtype.h"

namespace mneme {

// Exact keys that are not in RAM. A scan that has the rows' codes reads the few keys that it needs. Reading a key is
// expensive, so callers read as few as possible, and many at a time. Not thread-safe.
class KeySource {
 public:
  KeySource(DType dtype, int64_t dim) : dtype_(dtype), dim_(dim), row_bytes_(RowBytes(dtype, dim)) {}
  virtual ~KeySource() = default;
  KeySource(const KeySource&) = delete;
  KeySource& operator=(const KeySource&) = delete;

  DType dtype() const { return dtype_; }
  int64_t dim() const { return dim_; }
  size_t row_bytes() const { return row_bytes_; }

  // Copies the encoded keys of `rows` to `keys`, one after the other: rows.size() * row_bytes() bytes.
  // Requires: `rows` is strictly ascending.
  virtual absl::Status Read(absl::Span<const int64_t> rows, absl::Span<char> keys) = 0;

  // A hint that Read will soon be called for these rows.
  virtual void Prefetch(absl::Span<const int64_t> rows) { static_cast<void>(rows); }

 private:
  const DType dtype_;
  const int64_t dim_;
  const size_t row_bytes_;
};

}  // namespace mneme

#endif  // MNEME_INDEX_KEY_SOURCE_H_
