// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_SEGMENT_SEGMENT_WRITER_H_
#define MNEME_MEMORY_SEGMENT_SEGMENT_WRITER_H_

#include <cstdint>

#include "absl/status/status.h"

#include "base/model_card.h"
#include "memory/segment/segment.h"
#include "storage/database.h"

namespace mneme {

// Copies rows of a segment into a transaction or into another segment. Row ranges are rows of the source segment.
// Errors: those of Segment's readers and of Transaction.

// Writes the chunks that hold rows [begin_row, end_row) of every column. The last chunk may be short.
// Requires: begin_row is a multiple of kChunkRows.
absl::Status WriteChunks(Transaction& transaction, const ModelCard& card, DType dtype, Segment& segment,
                         int64_t begin_row, int64_t end_row);

// Writes rows [begin_row, end_row) of every layer as log records of segment `id`, whose row 0 is row `origin` of
// `segment`. A record holds column after column: for each KV head its key rows, then its value rows; the record of the
// token columns (layer kTokenColumnsLayer) has positions, then token ids. SegmentReader reads this layout.
absl::Status WriteLogs(Transaction& transaction, const ModelCard& card, DType dtype, Segment& segment,
                       int64_t begin_row, int64_t end_row, SegmentId id, int64_t origin);

// Writes the codes of the first `rows` rows of all layers; makes those that are missing. Does nothing if a segment of
// `rows` rows is not coded.
absl::Status WriteCodes(Transaction& transaction, const ModelCard& card, Segment& segment, int64_t rows);

// Appends rows [begin_row, end_row) of `from` to `to`. A layer that has fewer rows gives those that it has.
// Requires: the caller is the one thread that appends to `to`.
absl::Status CopyRows(const ModelCard& card, Segment& from, int64_t begin_row, int64_t end_row, Segment& to);

}  // namespace mneme

#endif  // MNEME_MEMORY_SEGMENT_SEGMENT_WRITER_H_
