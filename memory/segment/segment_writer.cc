// SPDX-License-Identifier: Apache-2.0
#include "memory/segment/segment_writer.h"

#include <algorithm>
#include <vector>

#include "base/status.h"
#include "memory/segment/code_columns.h"
#include "memory/segment/column_writer.h"
#include "memory/segment/segment_reader.h"

namespace mneme {
namespace {

// Copies rows [begin, begin + n) of a KeyRows or RowArray to `out`.
template <typename Rows>
void CopyOut(const Rows& rows, int64_t begin, int64_t n, char* out) {
  CopyRowBytes(RowSourceOf(rows), begin, n, rows.row_bytes(), out);
}

absl::Status CopyTokenColumns(Segment& from, int64_t begin_row, int64_t n, Segment& to) {
  MNEME_ASSIGN_OR_RETURN(const auto columns, from.Columns(begin_row + n));
  std::vector<int64_t> positions(static_cast<size_t>(n));
  std::vector<int32_t> token_ids(static_cast<size_t>(n));
  for (int64_t row = 0; row < n; ++row) {
    positions[static_cast<size_t>(row)] = columns->Position(begin_row + row);
    token_ids[static_cast<size_t>(row)] = columns->TokenId(begin_row + row);
  }
  MNEME_RETURN_IF_ERROR(to.ReserveColumns(n));
  to.AppendColumns(positions.data(), token_ids.data(), n);
  return absl::OkStatus();
}

}  // namespace

absl::Status WriteChunks(Transaction& transaction, const ModelCard& card, DType dtype, Segment& segment,
                         int64_t begin_row, int64_t end_row) {
  if (begin_row >= end_row) return absl::OkStatus();
  const auto write = [&](const Column& column, size_t row_bytes, RowSource source) {
    return WriteColumn(transaction, segment.id(), column, begin_row, end_row, row_bytes, source);
  };
  MNEME_ASSIGN_OR_RETURN(const auto columns, segment.Columns(end_row));
  MNEME_RETURN_IF_ERROR(write({0, 0, ColumnKind::kPositions}, sizeof(int64_t), RowSourceOf(columns->positions)));
  MNEME_RETURN_IF_ERROR(write({0, 0, ColumnKind::kTokenIds}, sizeof(int32_t), RowSourceOf(columns->token_ids)));
  for (size_t layer = 0; layer < card.layers.size(); ++layer) {
    const LayerCard& shape = card.layers[layer];
    MNEME_ASSIGN_OR_RETURN(const auto keys, segment.Keys(layer, end_row));
    MNEME_ASSIGN_OR_RETURN(const auto values, segment.Values(layer, end_row));
    for (int32_t head = 0; head < shape.kv_heads; ++head) {
      const RowArray& value_rows = *values->heads[static_cast<size_t>(head)];
      MNEME_RETURN_IF_ERROR(write({shape.layer, head, ColumnKind::kKeys}, RowBytes(dtype, shape.key_dim),
                                  RowSourceOf(*keys->heads[static_cast<size_t>(head)])));
      MNEME_RETURN_IF_ERROR(
          write({shape.layer, head, ColumnKind::kValues}, value_rows.row_bytes(), RowSourceOf(value_rows)));
    }
  }
  return absl::OkStatus();
}

absl::Status WriteLogs(Transaction& transaction, const ModelCard& card, DType dtype, Segment& segment,
                       int64_t begin_row, int64_t end_row, SegmentId id, int64_t origin) {
  if (begin_row >= end_row) return absl::OkStatus();
  const int64_t n = end_row - begin_row;
  std::vector<char> record;
  MNEME_ASSIGN_OR_RETURN(const auto columns, segment.Columns(end_row));
  record.resize(static_cast<size_t>(n) * (sizeof(int64_t) + sizeof(int32_t)));
  CopyOut(columns->positions, begin_row, n, record.data());
  CopyOut(columns->token_ids, begin_row, n, record.data() + static_cast<size_t>(n) * sizeof(int64_t));
  MNEME_RETURN_IF_ERROR(transaction.PutLog(id, kTokenColumnsLayer, begin_row - origin, n, record));
  for (size_t layer = 0; layer < card.layers.size(); ++layer) {
    const LayerCard& shape = card.layers[layer];
    const size_t key_bytes = RowBytes(dtype, shape.key_dim);
    const size_t value_bytes = RowBytes(dtype, shape.value_dim);
    MNEME_ASSIGN_OR_RETURN(const auto keys, segment.Keys(layer, end_row));
    MNEME_ASSIGN_OR_RETURN(const auto values, segment.Values(layer, end_row));
    record.resize(static_cast<size_t>(n) * static_cast<size_t>(shape.kv_heads) * (key_bytes + value_bytes));
    char* out = record.data();
    for (size_t head = 0; head < static_cast<size_t>(shape.kv_heads); ++head) {
      CopyOut(*keys->heads[head], begin_row, n, out);
      out += static_cast<size_t>(n) * key_bytes;
      CopyOut(*values->heads[head], begin_row, n, out);
      out += static_cast<size_t>(n) * value_bytes;
    }
    MNEME_RETURN_IF_ERROR(transaction.PutLog(id, shape.layer, begin_row - origin, n, record));
  }
  return absl::OkStatus();
}

absl::Status WriteCodes(Transaction& transaction, const ModelCard& card, Segment& segment, int64_t rows) {
  if (!IsCoded(rows)) return absl::OkStatus();
  for (size_t layer = 0; layer < card.layers.size(); ++layer) {
    MNEME_ASSIGN_OR_RETURN(const SearchRows loaded, segment.LoadForSearch(layer, rows, {.all_keys = true}));
    for (size_t head = 0; head < loaded.codes->heads.size(); ++head) {
      KeyCodes& codes = *loaded.codes->heads[head];
      if (codes.Extend(*loaded.keys->heads[head])) segment.CodesGrew();
      MNEME_RETURN_IF_ERROR(
          WriteHeadCodes(transaction, segment.id(), card.layers[layer].layer, static_cast<int32_t>(head), rows, codes));
    }
  }
  return absl::OkStatus();
}

absl::Status CopyRows(const ModelCard& card, Segment& from, int64_t begin_row, int64_t end_row, Segment& to) {
  if (const int64_t n = std::min(end_row, from.ColumnRows()) - begin_row; n > 0) {
    MNEME_RETURN_IF_ERROR(CopyTokenColumns(from, begin_row, n, to));
  }
  for (size_t layer = 0; layer < card.layers.size(); ++layer) {
    const int64_t end = std::min(end_row, from.LayerRows(layer));
    if (end <= begin_row) continue;
    MNEME_ASSIGN_OR_RETURN(const auto keys, from.Keys(layer, end));
    MNEME_ASSIGN_OR_RETURN(const auto values, from.Values(layer, end));
    MNEME_RETURN_IF_ERROR(
        to.FillRows(layer, end - begin_row, [&](RowKind kind, int32_t head, int64_t first, int64_t n, char* rows) {
          const auto place = static_cast<size_t>(head);
          if (kind == RowKind::kKeys) {
            CopyOut(*keys->heads[place], begin_row + first, n, rows);
          } else {
            CopyOut(*values->heads[place], begin_row + first, n, rows);
          }
          return absl::OkStatus();
        }));
    to.PublishRows(layer, end - begin_row);
  }
  return absl::OkStatus();
}

}  // namespace mneme
