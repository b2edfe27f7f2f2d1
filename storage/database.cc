#include "storage/database.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "rocksdb/write_batch.h"

#include "base/checksum.h"
#include "base/status.h"
#include "storage/chunk.h"
#include "storage/coding.h"
#include "storage/database_impl.h"
#include "storage/keys.h"
#include "storage/log_record.h"
#include "storage/transaction.h"

namespace mneme {
namespace {

// Ids are reserved this many at a time, so that few commits write the record of used ids.
constexpr uint64_t kIdBlock = 1024;

// Each flush of chunks begins a new write-ahead log; this many may wait for the small families to be flushed.
constexpr int kFlushesBetweenTrims = 16;

// Blocks that the files of `path` take, whatever sizes they claim.
uint64_t DiskBytes(const std::string& path) {
  DIR* folder = opendir(path.c_str());
  if (folder == nullptr) return 0;
  uint64_t bytes = 0;
  while (const dirent* entry = readdir(folder)) {
    struct stat info;
    if (fstatat(dirfd(folder), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(info.st_mode)) {
      bytes += static_cast<uint64_t>(info.st_blocks) * 512;
    }
  }
  closedir(folder);
  return bytes;
}

// Sorted ids as runs of neighbours [first, last].
std::vector<std::pair<uint64_t, uint64_t>> Runs(absl::Span<const uint64_t> ids) {
  const std::set<uint64_t> sorted(ids.begin(), ids.end());
  std::vector<std::pair<uint64_t, uint64_t>> runs;
  for (const uint64_t id : sorted) {
    if (!runs.empty() && runs.back().second + 1 == id) {
      runs.back().second = id;
    } else {
      runs.emplace_back(id, id);
    }
  }
  return runs;
}

}  // namespace

void DatabaseImpl::Log(absl::string_view message) const {
  if (!options_.log) return;
  try {
    options_.log(message);
  } catch (...) {
    // A log that throws must not change what the store does.
  }
}

absl::Status DatabaseImpl::LockWriter(std::shared_lock<std::shared_mutex>& lock) {
  if (!writer()) {
    return absl::FailedPreconditionError(absl::StrCat("the store is open for reading only: ", path_));
  }
  if (write_failed_) {
    const std::lock_guard alone(handle_mutex_);
    MNEME_RETURN_IF_ERROR(Recover());
  }
  lock = std::shared_lock(handle_mutex_);
  // Another thread may have failed to open it again just now.
  if (writer_handle_ != nullptr) return absl::OkStatus();
  lock.unlock();
  return absl::UnavailableError(absl::StrCat("the store could not be opened again after an error: ", path_));
}

absl::Status DatabaseImpl::Recover() {
  if (!write_failed_) return absl::OkStatus();  // another thread did it
  absl::Status status;
  if (must_reopen_ || writer_handle_ == nullptr) {
    status = Reopen();
  } else {
    status = FromRocks(db()->Resume(), "resume after an error");
  }
  if (!status.ok()) return status;
  write_failed_ = false;
  must_reopen_ = false;
  return absl::OkStatus();
}

absl::Status DatabaseImpl::Wrote(const rocksdb::Status& status, absl::string_view doing) {
  if (status.ok()) return absl::OkStatus();
  if (status.IsIncomplete()) must_reopen_ = true;
  write_failed_ = true;
  if (!status.IsIncomplete()) return FromRocks(status, doing);
  return absl::AbortedError(absl::StrCat(doing, ": ", status.ToString(), "; try again"));
}

absl::Status DatabaseImpl::MapRead(const rocksdb::Status& status, absl::string_view doing, Seen from) {
  if (status.IsPathNotFound() && !writer() && WriterWentOn(from)) {
    return absl::UnavailableError(
        absl::StrCat(doing, ": the writer has dropped it; catch up or open again: ", status.ToString()));
  }
  return FromRocksRead(status, doing);
}

absl::Status DatabaseImpl::ReserveIds() {
  if (next_segment_ <= segment_bound_ && next_index_ <= index_bound_) return absl::OkStatus();
  const std::lock_guard lock(ids_mutex_);
  if (next_segment_ <= segment_bound_ && next_index_ <= index_bound_) return absl::OkStatus();
  const uint64_t segment = next_segment_ + kIdBlock;
  const uint64_t index = next_index_ + kIdBlock;
  std::string value;
  AppendLittle(value, segment);
  AppendLittle(value, index);
  AppendLittle(value, Checksum32(value.data(), value.size(), KeySeed(kNextIdsKey)));
  // Not synced: it precedes the commit in the same log.
  const rocksdb::Status status =
      db()->Put(rocksdb::WriteOptions(), family(kDefaultFamily), ToSlice(kNextIdsKey), ToSlice(value));
  MNEME_RETURN_IF_ERROR(Wrote(status, "reserve ids"));
  segment_bound_ = segment;
  index_bound_ = index;
  return absl::OkStatus();
}

absl::Status DatabaseImpl::TrimLogs() {
  if (++flushes_since_trim_ < kFlushesBetweenTrims) return absl::OkStatus();
  flushes_since_trim_ = 0;
  rocksdb::FlushOptions options;
  options.wait = false;
  options.allow_write_stall = true;
  return Wrote(db()->Flush(options, {family(kDefaultFamily), family(kLogFamily)}), "trim the write-ahead log");
}

std::unique_ptr<Transaction> DatabaseImpl::Begin() {
  return std::make_unique<TransactionImpl>(this);
}

absl::StatusOr<std::vector<std::string>> DatabaseImpl::ListMemories() {
  return Guarded("list memories", [&]() -> absl::StatusOr<std::vector<std::string>> {
    std::vector<std::string> names;
    MNEME_ASSIGN_OR_RETURN(const View view, ViewOf(Seen::kView));
    const std::unique_ptr<rocksdb::Iterator> it(
        view->NewIterator(rocksdb::ReadOptions(), view.family(kDefaultFamily)));
    for (it->Seek(rocksdb::Slice(&kManifestPrefix, 1)); it->Valid() && it->key()[0] == kManifestPrefix; it->Next()) {
      names.emplace_back(it->key().data() + 1, it->key().size() - 1);
    }
    MNEME_RETURN_IF_ERROR(MapRead(it->status(), "list memories"));
    return names;
  });
}

absl::StatusOr<MemoryManifest> DatabaseImpl::ReadManifest(absl::string_view name) {
  return Guarded("read manifest", [&]() -> absl::StatusOr<MemoryManifest> {
    const std::string doing = absl::StrCat("manifest of memory '", name, "'");
    MNEME_ASSIGN_OR_RETURN(const View view, ViewOf(Seen::kView));
    rocksdb::PinnableSlice value;
    const rocksdb::Status status =
        view->Get(rocksdb::ReadOptions(), view.family(kDefaultFamily), ToSlice(ManifestKey(name)), &value);
    if (status.IsNotFound()) return absl::NotFoundError(absl::StrCat("no memory named '", name, "'"));
    MNEME_RETURN_IF_ERROR(MapRead(status, doing));
    absl::StatusOr<MemoryManifest> manifest = DecodeManifest(ToView(value));
    if (!manifest.ok()) {
      return absl::Status(manifest.status().code(), absl::StrCat(doing, ": ", manifest.status().message()));
    }
    if (manifest->name != name) {
      return absl::DataLossError(absl::StrCat(doing, ": it is that of '", manifest->name, "'"));
    }
    return manifest;
  });
}

absl::Status DatabaseImpl::ReadChunk(SegmentId segment, const Column& column, int64_t chunk, std::string& key,
                                     rocksdb::PinnableSlice& value) {
  key = ChunkKey(segment, column, chunk);
  const auto get = [&]() -> absl::StatusOr<rocksdb::Status> {
    value.Reset();
    MNEME_ASSIGN_OR_RETURN(const View view, ViewOf(Seen::kRowsView));
    // The chunk's own checksums cover what RocksDB's would; its CRC of the whole blob costs more than the read (Debian
    // builds it without the processor's instruction).
    rocksdb::ReadOptions options;
    options.verify_checksums = false;
    return view->Get(options, view.family(kRowsFamily), ToSlice(key), &value);
  };
  MNEME_ASSIGN_OR_RETURN(rocksdb::Status status, get());
  if (status.ok()) return absl::OkStatus();
  MNEME_ASSIGN_OR_RETURN(const bool newer, RefreshRowsView());
  if (newer) {
    MNEME_ASSIGN_OR_RETURN(status, get());
  }
  const std::string name = ChunkName(segment, column, chunk);
  if (status.IsNotFound()) return absl::DataLossError(absl::StrCat(name, ": missing"));
  absl::Status error = MapRead(status, name, Seen::kRowsView);
  if (!absl::IsDataLoss(error)) return error;
  const absl::StatusOr<std::string> files = WrongFiles();
  if (!files.ok() || files->empty()) return error;
  return absl::DataLossError(absl::StrCat(error.message(), " (missing or of a wrong size: ", *files, ")"));
}

absl::Status DatabaseImpl::ReadChunkRows(SegmentId segment, const Column& column, int64_t row_begin, int64_t row_end,
                                         size_t row_bytes, absl::Span<char> rows) {
  if (row_begin < 0 || row_end < row_begin || row_bytes == 0 || row_bytes > kMaxRowBytes ||
      rows.size() / row_bytes != static_cast<size_t>(row_end - row_begin) || rows.size() % row_bytes != 0) {
    return absl::InvalidArgumentError(absl::StrCat("read rows: [", row_begin, ", ", row_end, ") of ", row_bytes,
                                                   " bytes do not fill a buffer of ", rows.size(), " bytes"));
  }
  return Guarded("read rows", [&]() -> absl::Status {
    std::string key;
    rocksdb::PinnableSlice value;
    char* out = rows.data();
    for (int64_t row = row_begin; row < row_end;) {
      const int64_t chunk = row / kChunkRows;
      const int64_t begin = row % kChunkRows;
      const int64_t end = std::min(kChunkRows, begin + (row_end - row));
      const size_t bytes = static_cast<size_t>(end - begin) * row_bytes;
      MNEME_RETURN_IF_ERROR(ReadChunk(segment, column, chunk, key, value));
      const absl::Status status =
          DecodeChunkRows(key, ToView(value), row_bytes, begin, end, absl::MakeSpan(out, bytes));
      if (!status.ok()) {
        return absl::DataLossError(absl::StrCat(ChunkName(segment, column, chunk), ": ", status.message()));
      }
      out += bytes;
      row += end - begin;
    }
    return absl::OkStatus();
  });
}

absl::StatusOr<std::vector<LogRecord>> DatabaseImpl::ReadLogs(SegmentId segment, int32_t layer) {
  return Guarded("read logs", [&]() -> absl::StatusOr<std::vector<LogRecord>> {
    const std::string doing = absl::StrCat("log of segment ", segment, " layer ", layer);
    std::vector<LogRecord> records;
    MNEME_ASSIGN_OR_RETURN(const View view, ViewOf(Seen::kView));
    const std::unique_ptr<rocksdb::Iterator> it(view->NewIterator(rocksdb::ReadOptions(), view.family(kLogFamily)));
    it->Seek(ToSlice(LogKey(segment, 0, layer)));
    while (it->Valid()) {
      if (ParseOwner(ToView(it->key())) != segment) break;
      const std::optional<ParsedLogKey> key = ParseLogKey(ToView(it->key()));
      if (!key) return absl::DataLossError(absl::StrCat(doing, ": a malformed key"));
      if (key->layer == layer) {
        absl::StatusOr<LogRecord> record = DecodeLogRecord(ToView(it->key()), ToView(it->value()));
        if (!record.ok()) {
          return absl::DataLossError(absl::StrCat(doing, " row ", key->first_row, ": ", record.status().message()));
        }
        records.push_back(*std::move(record));
      }
      const int64_t next_row = key->layer < layer ? key->first_row : key->first_row + 1;
      it->Seek(ToSlice(LogKey(segment, next_row, layer)));
    }
    MNEME_RETURN_IF_ERROR(MapRead(it->status(), doing));
    return records;
  });
}

absl::Status DatabaseImpl::DropLogs(uint64_t first, uint64_t last) {
  return Wrote(db()->DeleteRange(rocksdb::WriteOptions(), family(kLogFamily), ToSlice(OwnerKey(first)),
                                 ToSlice(OwnerKey(last + 1))),
               "drop logs");
}

absl::Status DatabaseImpl::DropSegments(absl::Span<const SegmentId> segments) {
  return Guarded("drop segments", [&]() -> absl::Status {
    if (segments.empty()) return absl::OkStatus();
    std::shared_lock<std::shared_mutex> lock;
    MNEME_RETURN_IF_ERROR(LockWriter(lock));
    // The commits that stopped naming them must not be lost after their rows.
    MNEME_RETURN_IF_ERROR(Wrote(db()->FlushWAL(true), "sync before a drop"));
    for (const auto& [first, last] : Runs(segments)) {
      MNEME_RETURN_IF_ERROR(DropLogs(first, last));
      MNEME_RETURN_IF_ERROR(Wrote(rows_writer_->Drop(first, last), "drop segments"));
    }
    return absl::OkStatus();
  });
}

absl::Status DatabaseImpl::DropIndexes(absl::Span<const IndexId> indexes) {
  return Guarded("drop indices", [&]() -> absl::Status {
    if (indexes.empty()) return absl::OkStatus();
    std::shared_lock<std::shared_mutex> lock;
    MNEME_RETURN_IF_ERROR(LockWriter(lock));
    // A search that still holds one of them may be about to write its blob again.
    {
      const std::lock_guard guard(index_mutex_);
      dropped_indexes_.insert(indexes.begin(), indexes.end());
    }
    for (const auto& [first, last] : Runs(indexes)) {
      MNEME_RETURN_IF_ERROR(Wrote(index_writer_->Drop(first, last), "drop indices"));
    }
    return absl::OkStatus();
  });
}

absl::StatusOr<DatabaseStats> DatabaseImpl::Stats() {
  return Guarded("stats", [&]() -> absl::StatusOr<DatabaseStats> {
    DatabaseStats stats;
    MNEME_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListMemories());
    stats.memory_count = names.size();
    stats.disk_bytes = DiskBytes(path_);
    stats.appended_bytes = appended_bytes_;
    // Flush and compaction count the blob files they write.
    for (const rocksdb::Tickers ticker :
         {rocksdb::WAL_FILE_BYTES, rocksdb::FLUSH_WRITE_BYTES, rocksdb::COMPACT_WRITE_BYTES}) {
      stats.written_bytes += statistics_->getTickerCount(ticker);
    }
    stats.orphans_collected = orphans_collected_;
    return stats;
  });
}

}  // namespace mneme
