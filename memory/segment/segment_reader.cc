// SPDX-License-Identifier: Apache-2.0
#include "memory/segment/segment_reader.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"

#include "base/status.h"

namespace mneme {
namespace {

// Rows of one read from the database, so that a load needs little RAM beside its result.
constexpr int64_t kReadRows = 16 * kChunkRows;

}  // namespace

absl::Status SegmentReader::ReadLogRecords(int32_t layer) {
  if (rows_ <= chunked_rows_) return absl::OkStatus();
  MNEME_ASSIGN_OR_RETURN(records_, database_->ReadLogs(segment_, layer));
  return absl::OkStatus();
}

absl::Status SegmentReader::AppendColumn(const StoredColumn& stored, RowArray& rows) const {
  std::string buffer;
  const int64_t in_chunks = std::min(rows_, chunked_rows_);
  for (int64_t begin = 0; begin < in_chunks; begin += kReadRows) {
    const int64_t end = std::min(in_chunks, begin + kReadRows);
    buffer.resize(static_cast<size_t>(end - begin) * stored.row_bytes);
    MNEME_RETURN_IF_ERROR(database_->ReadChunkRows(segment_, stored.column, begin, end, stored.row_bytes,
                                                   absl::MakeSpan(buffer.data(), buffer.size())));
    rows.Append(buffer.data(), end - begin);
  }
  int64_t next = in_chunks;
  for (const LogRecord& record : records_) {
    if (next >= rows_) break;
    if (record.first_row + record.rows <= next) continue;
    if (record.first_row != next) break;
    rows.Append(record.bytes.data() + static_cast<size_t>(record.rows) * stored.log_bytes_before,
                std::min(record.rows, rows_ - next));
    next += record.rows;
  }
  if (next < rows_) {
    return absl::DataLossError(absl::StrCat("segment ", segment_, " layer ", stored.column.layer, ": rows ", next,
                                            " to ", rows_, " are missing from the log"));
  }
  return absl::OkStatus();
}

template <typename LayerRows>
absl::StatusOr<std::shared_ptr<LayerRows>> SegmentReader::ReadLayer(const LayerCard& layer, DType dtype) {
  MNEME_RETURN_IF_ERROR(ReadLogRecords(layer.layer));
  const size_t key_bytes = RowBytes(dtype, layer.key_dim);
  const size_t value_bytes = RowBytes(dtype, layer.value_dim);
  const bool of_keys = LayerRows::kKind == RowKind::kKeys;
  auto loaded = std::make_shared<LayerRows>();
  loaded->heads.reserve(static_cast<size_t>(layer.kv_heads));
  for (int32_t head = 0; head < layer.kv_heads; ++head) {
    auto rows = LayerRows::NewHead(layer, dtype);
    if (rows_ > 0) rows->Reserve(rows_);
    const StoredColumn column = {
        .column = {layer.layer, head, of_keys ? ColumnKind::kKeys : ColumnKind::kValues},
        .row_bytes = of_keys ? key_bytes : value_bytes,
        .log_bytes_before = static_cast<size_t>(head) * (key_bytes + value_bytes) + (of_keys ? 0 : key_bytes),
    };
    MNEME_RETURN_IF_ERROR(AppendColumn(column, LayerRows::Array(*rows)));
    loaded->heads.push_back(std::move(rows));
  }
  return loaded;
}

template absl::StatusOr<std::shared_ptr<LayerKeys>> SegmentReader::ReadLayer<LayerKeys>(const LayerCard&, DType);
template absl::StatusOr<std::shared_ptr<LayerValues>> SegmentReader::ReadLayer<LayerValues>(const LayerCard&, DType);

absl::StatusOr<std::shared_ptr<TokenColumns>> SegmentReader::ReadTokenColumns() {
  MNEME_RETURN_IF_ERROR(ReadLogRecords(kTokenColumnsLayer));
  auto loaded = std::make_shared<TokenColumns>();
  const StoredColumn positions = {
      .column = {0, 0, ColumnKind::kPositions}, .row_bytes = sizeof(int64_t), .log_bytes_before = 0};
  const StoredColumn token_ids = {
      .column = {0, 0, ColumnKind::kTokenIds}, .row_bytes = sizeof(int32_t), .log_bytes_before = sizeof(int64_t)};
  MNEME_RETURN_IF_ERROR(AppendColumn(positions, loaded->positions));
  MNEME_RETURN_IF_ERROR(AppendColumn(token_ids, loaded->token_ids));
  return loaded;
}

}  // namespace mneme
