// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_SEGMENT_SEGMENT_WRITER_H_
#define MNEME_MEMORY_SEGMENT_SEGMENT_WRITER_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

#include "base/model_card.h"
#include "memory/segment/segment.h"
#include "storage/database.h"

namespace mneme {

// Rows of a segment on their way into a transaction, and from one segment to another.

// Where pieces of equal size lie: the first byte of piece i, and how many lie contiguously from there.
using Pieces = absl::FunctionRef<const char*(int64_t i, int64_t* contiguous)>;

// Writes pieces [begin, end) of `bytes` bytes each as rows of a column; begin is a multiple of kChunkRows, and the last
// chunk may be short.
absl::Status PutColumn(Transaction& transaction, SegmentId segment, const Column& column, int64_t begin, int64_t end,
                       size_t bytes, Pieces pieces);

// Writes the chunks that hold rows [begin_row, end_row) of every column; begin_row is a multiple of kChunkRows, and the
// last chunk may be short.
absl::Status WriteChunks(Transaction& transaction, const ModelCard& card, DType dtype, Segment& segment,
                         int64_t begin_row, int64_t end_row);

// Writes rows [begin_row, end_row) of every layer as log records of segment `id`, whose row 0 is row `origin` of
// `segment`. The record's layout is private to this folder: for each KV head its key rows, then its value rows; the
// token columns (layer -1): positions, then token ids.
absl::Status WriteLogs(Transaction& transaction, const ModelCard& card, DType dtype, Segment& segment,
                       int64_t begin_row, int64_t end_row, SegmentId id, int64_t origin);

// Appends rows [begin_row, end_row) of `from` to `to`; layers that have fewer give what they have.
absl::Status CopyRows(const ModelCard& card, Segment& from, int64_t begin_row, int64_t end_row, Segment& to);

// Bytes of one token in rows, columns included.
int64_t TokenBytes(const ModelCard& card, DType dtype);

}  // namespace mneme

#endif  // MNEME_MEMORY_SEGMENT_SEGMENT_WRITER_H_
