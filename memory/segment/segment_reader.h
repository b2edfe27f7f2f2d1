// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_SEGMENT_SEGMENT_READER_H_
#define MNEME_MEMORY_SEGMENT_SEGMENT_READER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "base/dtype.h"
#include "base/model_card.h"
#include "base/row_array.h"
#include "memory/segment/segment_rows.h"
#include "storage/database.h"

namespace mneme {

// The layer number that log records of the token columns carry.
inline constexpr int32_t kTokenColumnsLayer = -1;

// Reads whole columns of one segment from the database into RAM: rows [0, chunked_rows) lie in chunks, rows
// [chunked_rows, rows) in log records (see segment_writer.h for their layout). Lives for one read.
// Errors: DataLoss if rows are damaged or missing; those of Database else.
class SegmentReader {
 public:
  SegmentReader(Database* database, SegmentId segment, int64_t rows, int64_t chunked_rows)
      : database_(database), segment_(segment), rows_(rows), chunked_rows_(chunked_rows) {}

  // LayerRows: LayerKeys or LayerValues.
  template <typename LayerRows>
  absl::StatusOr<std::shared_ptr<LayerRows>> ReadLayer(const LayerCard& layer, DType dtype);
  absl::StatusOr<std::shared_ptr<TokenColumns>> ReadTokenColumns();

 private:
  // A column, and where a log record has it: a record of n rows holds column after column, so this one begins at byte
  // n * log_bytes_before.
  struct StoredColumn {
    Column column;
    size_t row_bytes = 0;
    size_t log_bytes_before = 0;  // the row bytes of all columns before this one
  };

  absl::Status ReadLogRecords(int32_t layer);
  absl::Status AppendColumn(const StoredColumn& stored, RowArray& rows) const;

  Database* const database_;
  const SegmentId segment_;
  const int64_t rows_;
  const int64_t chunked_rows_;
  std::vector<LogRecord> records_;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_SEGMENT_SEGMENT_READER_H_
