// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_SEGMENT_MISSING_ROWS_H_
#define MNEME_MEMORY_SEGMENT_MISSING_ROWS_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"

#include "memory/segment/segment.h"

namespace mneme {

// A row that is not in memory.
struct MissingRow {
  Segment* segment;
  int64_t row;  // of the segment
};

// Reads keys or values of one KV head, one behind the other to `rows`. Those of a segment are neighbours in `missing`,
// ascending and different. DataLoss if they are damaged.
absl::Status ReadMissingRows(size_t layer, int64_t kv_head, RowKind kind, absl::Span<const MissingRow> missing,
                             size_t row_bytes, absl::Span<char> rows);

}  // namespace mneme

#endif  // MNEME_MEMORY_SEGMENT_MISSING_ROWS_H_
