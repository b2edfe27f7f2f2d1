// SPDX-License-Identifier: Apache-2.0
#include "storage/transaction.h"

#include <limits>

#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "storage/chunk.h"
#include "storage/keys.h"
#include "storage/log_record.h"

namespace mneme {
namespace {

// A commit is one batch in memory; chunks are not part of it.
constexpr size_t kMaxCommitBytes = size_t{1} << 30;

// Chunks go to RocksDB in batches of this size: one that is copied on while the second-level cache still has it costs
// half of one that has to come from memory again, and never needs a greater piece of that. Where another transaction is
// writing, one has to come with as much as a flush takes.
constexpr size_t kChunkBatchBytes = size_t{512} << 10;

}  // namespace

template <typename Body>
absl::Status TransactionImpl::Step(absl::string_view doing, const Body& body) {
  if (ended_) return absl::FailedPreconditionError(absl::StrCat(doing, ": the transaction has ended"));
  absl::Status status = Guarded(doing, body);
  if (!status.ok()) {
    ended_ = true;
    chunks_.Clear();
    commit_.Clear();
  }
  return status;
}

absl::Status TransactionImpl::PutChunk(SegmentId segment, const Column& column, int64_t chunk,
                                       absl::Span<const char> rows, size_t row_bytes) {
  return Step("put chunk", [&]() -> absl::Status {
    if (segment == 0 || column.layer < 0 || column.head < 0 || chunk < 0) {
      return absl::InvalidArgumentError(absl::StrCat("put chunk: no such place: ", ChunkName(segment, column, chunk)));
    }
    if (row_bytes == 0 || row_bytes > kMaxRowBytes || rows.empty() || rows.size() % row_bytes != 0 ||
        rows.size() / row_bytes > static_cast<size_t>(kChunkRows)) {
      return absl::InvalidArgumentError(absl::StrCat("put chunk: expected 1 to ", kChunkRows, " rows of ", row_bytes,
                                                     " bytes (at most ", kMaxRowBytes, "), got ", rows.size(),
                                                     " bytes"));
    }
    std::shared_lock<std::shared_mutex> lock;
    MNEME_RETURN_IF_ERROR(database_->LockWriter(lock));
    if (segment != chunk_owner_) {
      MNEME_RETURN_IF_ERROR(WriteChunks());
      chunk_owner_ = segment;
    }
    const std::string key = ChunkKey(segment, column, chunk);
    const std::string header = EncodeChunkHeader(key, rows, row_bytes);
    const rocksdb::Slice key_slice = ToSlice(key);
    const rocksdb::Slice parts[] = {ToSlice(header), rocksdb::Slice(rows.data(), rows.size())};
    // The owner's marker, which ColumnWriter adds, too.
    Reserve(chunks_, key.size() + header.size() + rows.size() + 64);
    MNEME_RETURN_IF_ERROR(FromRocks(
        chunks_.Put(database_->family(kRowsFamily), rocksdb::SliceParts(&key_slice, 1), rocksdb::SliceParts(parts, 2)),
        "put chunk"));
    if (!IsDisposable(column.kind)) database_->appended_bytes_ += rows.size();
    const size_t enough = database_->rows_writer_->InTurn(segment) ? kChunkBatchBytes : ColumnWriter::kFlushBytes;
    return chunks_.GetDataSize() >= enough ? WriteChunks() : absl::OkStatus();
  });
}

absl::Status TransactionImpl::WriteChunks() {
  if ((wrote_chunks_ || wrote_attachments_) && epoch_ != database_->epoch_) {
    // They have no log: those that no file had yet went with the database.
    return absl::AbortedError("write chunks: the database was opened again after an error meanwhile; try again");
  }
  if (chunks_.Count() == 0) return absl::OkStatus();
  MNEME_RETURN_IF_ERROR(database_->CheckCanWrite());
  wrote_chunks_ = true;
  epoch_ = database_->epoch_;
  const rocksdb::Status status = database_->rows_writer_->Write(chunk_owner_, &chunks_);
  chunks_.Clear();
  return database_->Wrote(status, "write chunks");
}

absl::Status TransactionImpl::PutLog(SegmentId segment, int32_t layer, int64_t first_row, int64_t rows,
                                     absl::Span<const char> bytes) {
  return Step("put log", [&]() -> absl::Status {
    if (segment == 0 || layer < -1 || first_row < 0 || rows <= 0 || rows > std::numeric_limits<int32_t>::max()) {
      return absl::InvalidArgumentError(absl::StrCat("put log: no such place: segment ", segment, " layer ", layer,
                                                     " rows ", first_row, " + ", rows));
    }
    std::shared_lock<std::shared_mutex> lock;
    MNEME_RETURN_IF_ERROR(database_->LockWriter(lock));
    if (bytes.size() > kMaxCommitBytes || commit_.GetDataSize() > kMaxCommitBytes - bytes.size()) {
      return absl::ResourceExhaustedError(absl::StrCat("put log: a commit holds at most ", kMaxCommitBytes, " bytes"));
    }
    const std::string key = LogKey(segment, first_row, layer);
    const std::string value = EncodeLogRecord(key, rows, bytes);
    Reserve(commit_, key.size() + value.size());
    database_->appended_bytes_ += bytes.size();
    return FromRocks(commit_.Put(database_->family(kLogFamily), ToSlice(key), ToSlice(value)), "put log");
  });
}

absl::Status TransactionImpl::DeleteLogs(SegmentId segment, int64_t before_row) {
  return Step("delete logs", [&]() -> absl::Status {
    if (segment == 0 || before_row < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("delete logs: no such place: segment ", segment, " before row ", before_row));
    }
    std::shared_lock<std::shared_mutex> lock;
    MNEME_RETURN_IF_ERROR(database_->LockWriter(lock));
    const std::string begin = LogKey(segment, 0, -1);
    const std::string end = LogKey(segment, before_row, -1);
    Reserve(commit_, begin.size() + end.size());
    return FromRocks(commit_.DeleteRange(database_->family(kLogFamily), ToSlice(begin), ToSlice(end)), "delete logs");
  });
}

absl::Status TransactionImpl::PutAttachment(IndexId id, absl::string_view bytes) {
  return Step("put attachment", [&]() -> absl::Status {
    {
      std::shared_lock<std::shared_mutex> lock;
      MNEME_RETURN_IF_ERROR(database_->LockWriter(lock));
      MNEME_RETURN_IF_ERROR(WriteChunks());
      wrote_attachments_ = true;
      epoch_ = database_->epoch_;
    }
    database_->appended_bytes_ += bytes.size();
    return database_->PutIndexBlob(id, 0, 0, bytes);
  });
}

absl::Status TransactionImpl::PutManifest(const MemoryManifest& manifest) {
  return Step("put manifest", [&]() -> absl::Status {
    std::shared_lock<std::shared_mutex> lock;
    MNEME_RETURN_IF_ERROR(database_->LockWriter(lock));
    const std::string value = EncodeManifest(manifest);
    // What could not be read back must not be written.
    if (const auto decoded = DecodeManifest(value); !decoded.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("put manifest: ", decoded.status().message()));
    }
    const std::string key = ManifestKey(manifest.name);
    Reserve(commit_, key.size() + value.size());
    return FromRocks(commit_.Put(database_->family(kDefaultFamily), ToSlice(key), ToSlice(value)), "put manifest");
  });
}

absl::Status TransactionImpl::DeleteManifest(absl::string_view name) {
  return Step("delete manifest", [&]() -> absl::Status {
    std::shared_lock<std::shared_mutex> lock;
    MNEME_RETURN_IF_ERROR(database_->LockWriter(lock));
    const std::string key = ManifestKey(name);
    rocksdb::PinnableSlice value;
    if (database_->db()->Get(rocksdb::ReadOptions(), database_->family(kDefaultFamily), ToSlice(key), &value).ok()) {
      database_->dropped_bytes_ += key.size() + value.size();
    }
    Reserve(commit_, key.size());
    return FromRocks(commit_.Delete(database_->family(kDefaultFamily), ToSlice(key)), "delete manifest");
  });
}

absl::Status TransactionImpl::Commit(Durability durability) {
  return Step("commit", [&]() -> absl::Status {
    ended_ = true;
    std::shared_lock<std::shared_mutex> lock;
    MNEME_RETURN_IF_ERROR(database_->LockForWrite(lock));
    MNEME_RETURN_IF_ERROR(WriteChunks());
    if (wrote_chunks_) {
      MNEME_RETURN_IF_ERROR(database_->Wrote(database_->rows_writer_->Flush(), "flush chunks"));
      MNEME_RETURN_IF_ERROR(database_->TrimLogs());
    }
    // Index blobs become durable with the manifest that names them.
    MNEME_RETURN_IF_ERROR(database_->Wrote(database_->index_writer_->Flush(), "flush index blobs"));
    MNEME_RETURN_IF_ERROR(database_->ReserveIds());
    rocksdb::WriteOptions options;
    options.sync = durability == Durability::kSynced;
    const std::shared_lock committing(database_->commit_mutex_);
    return database_->Wrote(database_->db()->Write(options, &commit_), "commit");
  });
}

}  // namespace mneme
