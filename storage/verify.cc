#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/dtype.h"
#include "base/status.h"
#include "storage/chunk.h"
#include "storage/database_impl.h"
#include "storage/keys.h"

namespace mneme {
namespace {

// The columns that a manifest says every segment has, with the bytes of a row.
std::vector<std::pair<Column, size_t>> ColumnsOf(const MemoryManifest& manifest) {
  std::vector<std::pair<Column, size_t>> columns;
  for (const LayerCard& layer : manifest.card.layers) {
    for (int32_t head = 0; head < layer.kv_heads; ++head) {
      columns.push_back(
          {{layer.layer, head, ColumnKind::kKeys}, RowBytes(manifest.options.stored_dtype, layer.key_dim)});
      columns.push_back(
          {{layer.layer, head, ColumnKind::kValues}, RowBytes(manifest.options.stored_dtype, layer.value_dim)});
    }
  }
  if (manifest.has_positions) columns.push_back({{0, 0, ColumnKind::kPositions}, sizeof(int64_t)});
  if (manifest.has_token_ids) columns.push_back({{0, 0, ColumnKind::kTokenIds}, sizeof(int32_t)});
  return columns;
}

// DataLoss unless the records hold rows [begin, end).
absl::Status CheckCovered(const std::vector<LogRecord>& records, int64_t begin, int64_t end) {
  for (const LogRecord& record : records) {
    if (record.first_row > begin) break;
    begin = std::max(begin, record.first_row + record.rows);
  }
  if (begin >= end) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("row ", begin, " is missing"));
}

}  // namespace

absl::Status DatabaseImpl::VerifyMemory(const MemoryManifest& manifest,
                                        const std::function<bool(uint64_t, uint64_t)>& progress,
                                        const std::function<void(const absl::Status&)>& damaged) {
  return Guarded("verify", [&]() -> absl::Status {
    const std::vector<std::pair<Column, size_t>> columns = ColumnsOf(manifest);
    uint64_t row_bytes = 0;
    for (const auto& [column, bytes] : columns) row_bytes += bytes;
    uint64_t total = 0;
    for (const SegmentRef& segment : manifest.segments) total += static_cast<uint64_t>(segment.rows) * row_bytes;
    uint64_t done = 0;
    const auto advance = [&](uint64_t bytes) -> absl::Status {
      done += bytes;
      if (progress && !progress(done, total)) return absl::CancelledError("verify: cancelled");
      return absl::OkStatus();
    };
    // Damage is told and passed over; any other error ends the walk.
    const auto judge = [&](const absl::Status& status) -> absl::Status {
      if (!absl::IsDataLoss(status)) return status;
      if (damaged) damaged(status);
      return absl::OkStatus();
    };

    std::string key;
    rocksdb::PinnableSlice value;
    for (const SegmentRef& segment : manifest.segments) {
      const int64_t chunked = std::min(segment.rows, segment.chunked_rows);
      for (const auto& [column, bytes] : columns) {
        for (int64_t row = 0; row < chunked; row += kChunkRows) {
          const int64_t rows = std::min(kChunkRows, chunked - row);
          absl::Status status = ReadChunk(segment.id, column, row / kChunkRows, key, value);
          if (status.ok()) {
            status = VerifyChunk(key, ToView(value), bytes, rows);
            if (!status.ok()) {
              status = absl::DataLossError(
                  absl::StrCat(ChunkName(segment.id, column, row / kChunkRows), ": ", status.message()));
            }
          }
          MNEME_RETURN_IF_ERROR(judge(status));
          MNEME_RETURN_IF_ERROR(advance(static_cast<uint64_t>(rows) * bytes));
        }
      }
      if (chunked == segment.rows) continue;
      std::vector<int32_t> layers;
      if (manifest.has_positions || manifest.has_token_ids) layers.push_back(-1);
      for (const LayerCard& layer : manifest.card.layers) layers.push_back(layer.layer);
      for (const int32_t layer : layers) {
        const absl::StatusOr<std::vector<LogRecord>> records = ReadLogs(segment.id, layer);
        absl::Status status = records.status();
        if (status.ok()) {
          status = CheckCovered(*records, chunked, segment.rows);
          if (!status.ok()) {
            status = absl::DataLossError(
                absl::StrCat("log of segment ", segment.id, " layer ", layer, ": ", status.message()));
          }
        }
        MNEME_RETURN_IF_ERROR(judge(status));
      }
      MNEME_RETURN_IF_ERROR(advance(static_cast<uint64_t>(segment.rows - chunked) * row_bytes));
    }
    return absl::OkStatus();
  });
}

}  // namespace mneme
