// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_KEY_SOURCE_H_
#define MNEME_INDEX_KEY_SOURCE_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"

#include "base/dtype.h"

namespace mneme {

// Exact keys that are not in memory: a search that has the rows' codes asks for the few that these do not rule out.
// Reading one is dear, so whoever asks does so for as few as possible, and for many at a time.
//
// One thread uses an object at a time.
class KeySource {
 public:
  KeySource(DType dtype, int64_t dim) : dtype_(dtype), dim_(dim), row_bytes_(RowBytes(dtype, dim)) {}
  virtual ~KeySource() = default;
  KeySource(const KeySource&) = delete;
  KeySource& operator=(const KeySource&) = delete;

  DType dtype() const { return dtype_; }
  int64_t dim() const { return dim_; }
  size_t row_bytes() const { return row_bytes_; }

  // Copies `rows`, ascending and different, encoded, one behind the other to `keys` (rows.size() * row_bytes() bytes).
  virtual absl::Status Read(absl::Span<const int64_t> rows, absl::Span<char> keys) = 0;

  // Read will be called with the same rows soon: an occasion to begin with it.
  virtual void WillRead(absl::Span<const int64_t> rows) { static_cast<void>(rows); }

 private:
  const DType dtype_;
  const int64_t dim_;
  const size_t row_bytes_;
};

}  // namespace mneme

#endif  // MNEME_INDEX_KEY_SOURCE_H_
