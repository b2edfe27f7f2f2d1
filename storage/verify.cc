// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <filesystem>
#include <map>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/dtype.h"
#include "base/status.h"
#include "storage/chunk.h"
#include "storage/database_impl.h"
#include "storage/keys.h"

namespace mneme {
namespace {

// RocksDB writes "/000018.sst" for some kinds of files.
std::string BaseName(const std::string& name) {
  return name.substr(name.find_last_of('/') + 1);
}

bool HasTokenColumns(const MemoryManifest& manifest) {
  return manifest.has_positions || manifest.has_token_ids;
}

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
  // The token columns are written together; has_positions says only that some position differs from its token index.
  if (HasTokenColumns(manifest)) {
    columns.push_back({{0, 0, ColumnKind::kPositions}, sizeof(int64_t)});
    columns.push_back({{0, 0, ColumnKind::kTokenIds}, sizeof(int32_t)});
  }
  return columns;
}

uint64_t BytesOfRow(const std::vector<std::pair<Column, size_t>>& columns) {
  uint64_t row_bytes = 0;
  for (const auto& [column, bytes] : columns) row_bytes += bytes;
  return row_bytes;
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

uint64_t StoredBytes(const MemoryManifest& manifest) {
  const uint64_t row_bytes = BytesOfRow(ColumnsOf(manifest));
  uint64_t bytes = 0;
  for (const SegmentRef& segment : manifest.segments) bytes += static_cast<uint64_t>(segment.rows) * row_bytes;
  return bytes;
}

absl::StatusOr<std::string> DatabaseImpl::WrongFiles() {
  MNEME_ASSIGN_OR_RETURN(const View view, ViewOf(Seen::kRowsView));
  const auto live = [&] {
    std::map<std::string, uint64_t> sizes;
    for (int f = 0; f < kFamilyCount; ++f) {
      rocksdb::ColumnFamilyMetaData meta;
      view->GetColumnFamilyMetaData(view.family(static_cast<Family>(f)), &meta);
      for (const auto& level : meta.levels) {
        for (const auto& file : level.files) sizes[BaseName(file.name)] = file.size;
      }
      for (const auto& file : meta.blob_files) sizes[BaseName(file.blob_file_name)] = file.blob_file_size;
    }
    return sizes;
  };
  const auto wrong = [&](const std::string& name, uint64_t size) {
    std::error_code error;
    return std::filesystem::file_size(std::filesystem::path(folder_->io_path()) / name, error) != size || error;
  };
  std::map<std::string, uint64_t> found;
  for (const auto& [name, size] : live()) {
    if (wrong(name, size)) found[name] = size;
  }
  if (found.empty()) return std::string();
  // A file that was dropped meanwhile is missing because nothing needs it.
  const std::map<std::string, uint64_t> still = live();
  std::string names;
  for (const auto& [name, size] : found) {
    if (still.count(name) != 0) absl::StrAppend(&names, names.empty() ? "" : ", ", name);
  }
  return names;
}

absl::Status DatabaseImpl::VerifyTables() {
  return Guarded("verify", [&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::string wrong, WrongFiles());
    if (!wrong.empty() && (writer() || !WriterWentOn(Seen::kRowsView))) {
      return absl::DataLossError(absl::StrCat("files of the store are missing or of a wrong size: ", wrong));
    }
    rocksdb::Status status;
    {
      MNEME_ASSIGN_OR_RETURN(const View view, ViewOf(Seen::kRowsView));
      status = view->VerifyChecksum();
    }
    return MapRead(status, "table files", Seen::kRowsView);
  });
}

absl::Status DatabaseImpl::VerifyMemory(const MemoryManifest& manifest,
                                        const std::function<bool(uint64_t, uint64_t)>& progress,
                                        const std::function<void(const absl::Status&)>& damaged) {
  return Guarded("verify", [&]() -> absl::Status {
    const std::vector<std::pair<Column, size_t>> columns = ColumnsOf(manifest);
    const uint64_t row_bytes = BytesOfRow(columns);
    const uint64_t total = StoredBytes(manifest);
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

    std::string value;
    for (const SegmentRef& segment : manifest.segments) {
      const int64_t chunked = std::min(segment.rows, segment.chunked_rows);
      for (const auto& [column, bytes] : columns) {
        for (int64_t row = 0; row < chunked; row += kChunkRows) {
          const int64_t rows = std::min(kChunkRows, chunked - row);
          MNEME_RETURN_IF_ERROR(judge(VerifyOne(segment.id, column, row / kChunkRows, bytes, rows, value)));
          MNEME_RETURN_IF_ERROR(advance(static_cast<uint64_t>(rows) * bytes));
        }
      }
      if (chunked == segment.rows) continue;
      std::vector<int32_t> layers;
      if (HasTokenColumns(manifest)) layers.push_back(-1);
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
