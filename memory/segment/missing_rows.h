// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_SEGMENT_MISSING_ROWS_H_
#define MNEME_MEMORY_SEGMENT_MISSING_ROWS_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"

#include "memory/segment/segment.h"

namespace mneme {

// A row that a search needs and that is not in RAM.
struct MissingRow {
  Segment* segment;
  int64_t row;  // of the segment
};

// Reads keys or values of one KV head to `out`, one after another, `row_bytes` each. All rows are prefetched before the
// first is read.
// Requires: the rows of one segment stand together in `missing` and ascend.
// Errors: DataLoss if rows are damaged; those of Database.
absl::Status ReadMissingRows(size_t layer, int64_t kv_head, RowKind kind, absl::Span<const MissingRow> missing,
                             size_t row_bytes, absl::Span<char> out);

}  // namespace mneme

#endif  // MNEME_MEMORY_SEGMENT_MISSING_ROWS_H_
