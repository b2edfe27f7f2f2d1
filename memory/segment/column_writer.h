// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_SEGMENT_COLUMN_WRITER_H_
#define MNEME_MEMORY_SEGMENT_COLUMN_WRITER_H_

#include <cstddef>
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

#include "storage/database.h"

namespace mneme {

// Finds rows of equal size in RAM. Returns: the first byte of row `row`, and in `contiguous` how many rows (>= 1) lie
// one after another from there.
using RowSource = absl::FunctionRef<const char*(int64_t row, int64_t* contiguous)>;

// Of a KeyRows or RowArray, which must outlive the result.
template <typename Rows>
auto RowSourceOf(const Rows& rows) {
  return [&rows](int64_t row, int64_t* contiguous) { return static_cast<const char*>(rows.Rows(row, contiguous)); };
}

// Copies rows [begin, begin + n) to `out`, one after another.
void CopyRowBytes(RowSource source, int64_t begin, int64_t n, size_t row_bytes, char* out);

// Writes rows [begin, end) as chunks of a column. The last chunk may be short.
// Requires: begin is a multiple of kChunkRows.
absl::Status WriteColumn(Transaction& transaction, SegmentId segment, const Column& column, int64_t begin, int64_t end,
                         size_t row_bytes, RowSource source);

}  // namespace mneme

#endif  // MNEME_MEMORY_SEGMENT_COLUMN_WRITER_H_
