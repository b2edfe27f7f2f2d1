// SPDX-License-Identifier: Apache-2.0
#include "storage/database.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "absl/strings/str_cat.h"
#include "rocksdb/write_batch.h"

#include "base/checksum.h"
#include "base/status.h"
#include "storage/chunk.h"
#include "storage/coding.h"
#include "storage/database_impl.h"
#include "storage/found_value.h"
#include "storage/keys.h"
#include "storage/log_record.h"
#include "storage/memory_check.h"
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
  MNEME_RETURN_IF_ERROR(CheckNotBroken());
  if (write_failed_) {
    MNEME_RETURN_IF_ERROR(CheckCanWrite());  // what opens it again takes as much
    StopBackup();                            // it holds the handle
    const std::lock_guard alone(handle_mutex_);
    MNEME_RETURN_IF_ERROR(Recover());
  }
  lock = std::shared_lock(handle_mutex_);
  // Another thread may have failed to open it again just now.
  if (writer_handle_ != nullptr) return absl::OkStatus();
  lock.unlock();
  return absl::UnavailableError(absl::StrCat("the store could not be opened again after an error: ", path_));
}

absl::Status DatabaseImpl::LockForWrite(std::shared_lock<std::shared_mutex>& lock) {
  MNEME_RETURN_IF_ERROR(LockWriter(lock));
  return CheckCanWrite();
}

absl::Status DatabaseImpl::CheckCanWrite() const {
  MNEME_RETURN_IF_ERROR(folder_->Check());
  return CheckMemoryForWrite();
}

absl::Status DatabaseImpl::CheckNotBroken() {
  const std::shared_lock lock(handle_mutex_);
  if (writer_handle_ == nullptr || !writer_handle_->broken()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("memory ran out inside RocksDB, which cannot go on writing: ", path_,
                   "; what was committed is kept and can be read; open the store in a new process to change it"));
}

absl::Status DatabaseImpl::Recover() {
  if (!write_failed_) return absl::OkStatus();  // another thread did it
  if (writer_handle_ != nullptr && writer_handle_->broken()) return OutOfMemoryError("write");
  MNEME_RETURN_IF_ERROR(Reopen());
  write_failed_ = false;
  return absl::OkStatus();
}

absl::Status DatabaseImpl::Wrote(const rocksdb::Status& status, absl::string_view doing) {
  if (status.ok()) return absl::OkStatus();
  write_failed_ = true;
  if (!status.IsIncomplete()) return FromRocks(status, doing);
  return absl::AbortedError(absl::StrCat(doing, ": ", status.ToString(), "; try again"));
}

absl::Status DatabaseImpl::MapRead(const rocksdb::Status& status, absl::string_view doing, Seen from) {
  if (status.IsPathNotFound() && !writer() && WriterWentOn(from)) {
    return absl::UnavailableError(
        absl::StrCat(doing, ": the writer has dropped it; catch up or open again: ", status.ToString()));
  }
  if (status.IsPathNotFound()) MNEME_RETURN_IF_ERROR(folder_->Check());
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
    const std::unique_ptr<rocksdb::Iterator> it(view->NewIterator(rocksdb::ReadOptions(), view.family(kDefaultFamily)));
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

absl::Status DatabaseImpl::LookUpChunk(SegmentId segment, const Column& column, int64_t chunk, const std::string& key,
                                       FoundValue& place, rocksdb::PinnableSlice& value) {
  const auto get = [&]() -> absl::StatusOr<rocksdb::Status> {
    value.Reset();
    MNEME_ASSIGN_OR_RETURN(const View view, ViewOf(Seen::kRowsView));
    // The chunk's own checksums cover the value; RocksDB's CRC of the whole costs more than the read (Debian builds it
    // without the processor's instruction).
    FindValue find(key.size());
    const rocksdb::Status status = view->Get(rocksdb::ReadOptions(), view.family(kRowsFamily), ToSlice(key), &value);
    place = find.found;
    return place.file != nullptr ? rocksdb::Status::OK() : status;
  };
  MNEME_ASSIGN_OR_RETURN(rocksdb::Status status, get());
  if (status.ok()) return absl::OkStatus();
  MNEME_ASSIGN_OR_RETURN(const bool newer, RefreshRowsView());
  if (newer) {
    MNEME_ASSIGN_OR_RETURN(status, get());
    if (status.ok()) return absl::OkStatus();
  }
  const std::string name = ChunkName(segment, column, chunk);
  if (status.IsNotFound()) {
    const std::string missing = absl::StrCat(name, ": missing");
    return IsDisposable(column.kind) ? absl::NotFoundError(missing) : absl::DataLossError(missing);
  }
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
    char* out = rows.data();
    for (int64_t row = row_begin; row < row_end;) {
      const int64_t chunk = row / kChunkRows;
      const int64_t begin = row % kChunkRows;
      const int64_t end = std::min(kChunkRows, begin + (row_end - row));
      const size_t bytes = static_cast<size_t>(end - begin) * row_bytes;
      MNEME_RETURN_IF_ERROR(WithPlaces(segment, column, chunk, [&](bool* known) {
        return ReadRangeOf(segment, column, chunk, begin, end, row_bytes, absl::MakeSpan(out, bytes), known);
      }));
      out += bytes;
      row += end - begin;
    }
    return absl::OkStatus();
  });
}

namespace {

// Bytes [offset, offset + n) of a value that lies in a blob file. name(): what errors call it.
template <typename Name>
absl::Status ReadBytes(const FoundValue& value, size_t offset, char* bytes, size_t n, const Name& name) {
  rocksdb::Slice read;
  const rocksdb::IOStatus status =
      value.file->Read(value.offset + offset, n, rocksdb::IOOptions(), &read, bytes, nullptr);
  if (!status.ok()) return FromRocksRead(status, name());
  if (read.size() < n) return absl::DataLossError(absl::StrCat(name(), ": its file is too short"));
  if (read.data() != bytes) std::memcpy(bytes, read.data(), n);
  return absl::OkStatus();
}

}  // namespace

absl::Status DatabaseImpl::FindChunk(SegmentId segment, const Column& column, int64_t chunk, std::string& key,
                                     ChunkPlaces::Place& place, rocksdb::PinnableSlice& value, bool* known) {
  key = ChunkKey(segment, column, chunk);
  place = places_.Find(key);
  *known = place.value.file != nullptr;
  if (*known) return absl::OkStatus();
  place = {};
  MNEME_RETURN_IF_ERROR(LookUpChunk(segment, column, chunk, key, place.value, value));
  if (place.value.file != nullptr) places_.Put(key, place.value);
  return absl::OkStatus();
}

template <typename Read>
absl::Status DatabaseImpl::WithPlaces(SegmentId segment, const Column& column, int64_t chunk, const Read& read) {
  bool known;
  absl::Status status = read(&known);
  if (status.ok() || !known) return status;
  // What was known may be of a chunk that was written again since; the tree tells.
  places_.Forget(ChunkKey(segment, column, chunk));
  return read(&known);
}

absl::Status DatabaseImpl::VerifyOne(SegmentId segment, const Column& column, int64_t chunk, size_t row_bytes,
                                     int64_t rows, std::string& value) {
  return WithPlaces(segment, column, chunk, [&](bool* known) -> absl::Status {
    std::string key;
    ChunkPlaces::Place place;
    rocksdb::PinnableSlice whole;
    MNEME_RETURN_IF_ERROR(FindChunk(segment, column, chunk, key, place, whole, known));
    const auto name = [&] { return ChunkName(segment, column, chunk); };
    if (place.value.file != nullptr) {
      value.resize(place.value.bytes);
      MNEME_RETURN_IF_ERROR(ReadBytes(place.value, 0, value.data(), value.size(), name));
    }
    const absl::string_view bytes = place.value.file != nullptr ? absl::string_view(value) : ToView(whole);
    const absl::Status status = VerifyChunk(key, bytes, row_bytes, rows);
    return status.ok() ? status : absl::DataLossError(absl::StrCat(name(), ": ", status.message()));
  });
}

absl::Status DatabaseImpl::ReadRangeOf(SegmentId segment, const Column& column, int64_t chunk, int64_t begin,
                                       int64_t end, size_t row_bytes, absl::Span<char> rows, bool* known) {
  std::string key;
  ChunkPlaces::Place place;
  rocksdb::PinnableSlice whole;
  MNEME_RETURN_IF_ERROR(FindChunk(segment, column, chunk, key, place, whole, known));
  const auto name = [&] { return ChunkName(segment, column, chunk); };
  const auto named = [&](const absl::Status& status) {
    return status.ok() ? status : absl::DataLossError(absl::StrCat(name(), ": ", status.message()));
  };
  const FoundValue& value = place.value;
  if (value.file == nullptr) return named(DecodeChunkRows(key, ToView(whole), row_bytes, begin, end, rows));
  if (!AreWholeSubBlocks(value.bytes, row_bytes, begin, end)) {
    std::string bytes(value.bytes, '\0');
    MNEME_RETURN_IF_ERROR(ReadBytes(value, 0, bytes.data(), bytes.size(), name));
    return named(DecodeChunkRows(key, bytes, row_bytes, begin, end, rows));
  }
  // Into their place, and verified there.
  std::string header = std::move(place.header);
  if (header.empty()) {
    header.resize(ChunkHeaderBytes(value.bytes));
    MNEME_RETURN_IF_ERROR(ReadBytes(value, 0, header.data(), header.size(), name));
  }
  const size_t from = header.size() + static_cast<size_t>(begin) * row_bytes;
  if (from + rows.size() > value.bytes) return named(absl::DataLossError("holds fewer rows than were asked for"));
  MNEME_RETURN_IF_ERROR(ReadBytes(value, from, rows.data(), rows.size(), name));
  return named(VerifyChunkRows(key, header, value.bytes, row_bytes, begin, rows));
}

absl::Status DatabaseImpl::ReadRowsOf(SegmentId segment, const Column& column, int64_t chunk,
                                      absl::Span<const int64_t> which, size_t row_bytes, absl::Span<char> rows,
                                      bool* known) {
  std::string key;
  ChunkPlaces::Place place;
  rocksdb::PinnableSlice whole;
  MNEME_RETURN_IF_ERROR(FindChunk(segment, column, chunk, key, place, whole, known));
  const auto name = [&] { return ChunkName(segment, column, chunk); };
  const auto lost = [&](absl::string_view why) { return absl::DataLossError(absl::StrCat(name(), ": ", why)); };
  if (place.value.file == nullptr) {
    const absl::Status status = DecodeChunkRows(key, ToView(whole), row_bytes, which, rows);
    return status.ok() ? status : lost(status.message());
  }
  // The value as far as it is needed; the rest is left over from others.
  static thread_local std::string value;
  const size_t value_bytes = place.value.bytes;
  if (value.size() < value_bytes) value.resize(value_bytes);
  const size_t header_bytes = ChunkHeaderBytes(value_bytes);
  std::vector<ByteRange> ranges = ChunkRanges(value_bytes, row_bytes, which);
  if (!place.header.empty()) {
    value.replace(0, header_bytes, place.header);
  } else if (!ranges.empty() && ranges.front().begin == header_bytes) {
    ranges.front().begin = 0;
  } else {
    ranges.insert(ranges.begin(), {0, header_bytes});
  }
  for (const ByteRange& range : ranges) {
    MNEME_RETURN_IF_ERROR(
        ReadBytes(place.value, range.begin, value.data() + range.begin, range.end - range.begin, name));
  }
  const absl::string_view view = absl::string_view(value).substr(0, value_bytes);
  const absl::Status status = DecodeChunkRows(key, view, row_bytes, which, rows);
  if (!status.ok()) return lost(status.message());
  if (place.header.empty()) places_.SetHeader(key, view.substr(0, header_bytes));
  return absl::OkStatus();
}

namespace {

// Calls visit(chunk, numbers of the rows within it, place of the first in `which`) for the chunks that rows `which`,
// ascending, lie in, until it returns an error.
template <typename Visit>
absl::Status ForEachChunk(absl::Span<const int64_t> which, const Visit& visit) {
  std::vector<int64_t> in_chunk;
  for (size_t first = 0; first < which.size(); first += in_chunk.size()) {
    const int64_t chunk = which[first] / kChunkRows;
    in_chunk.clear();
    for (size_t i = first; i < which.size() && which[i] / kChunkRows == chunk; ++i) {
      in_chunk.push_back(which[i] % kChunkRows);
    }
    MNEME_RETURN_IF_ERROR(visit(chunk, absl::MakeConstSpan(in_chunk), first));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status DatabaseImpl::ReadRows(SegmentId segment, const Column& column, absl::Span<const int64_t> which,
                                    size_t row_bytes, absl::Span<char> rows) {
  if (row_bytes == 0 || row_bytes > kMaxRowBytes || rows.size() != which.size() * row_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("read rows: ", which.size(), " rows of ", row_bytes,
                                                   " bytes do not fill a buffer of ", rows.size(), " bytes"));
  }
  for (size_t i = 0; i < which.size(); ++i) {
    if (which[i] < 0 || (i > 0 && which[i] <= which[i - 1])) {
      return absl::InvalidArgumentError(
          absl::StrCat("read rows: expected ascending rows, got ", which[i], " at place ", i));
    }
  }
  return Guarded("read rows", [&] {
    return ForEachChunk(which, [&](int64_t chunk, absl::Span<const int64_t> in_chunk, size_t first) {
      const absl::Span<char> out = rows.subspan(first * row_bytes, in_chunk.size() * row_bytes);
      return WithPlaces(segment, column, chunk, [&](bool* known) {
        return ReadRowsOf(segment, column, chunk, in_chunk, row_bytes, out, known);
      });
    });
  });
}

void DatabaseImpl::WillReadRows(SegmentId segment, const Column& column, absl::Span<const int64_t> which,
                                size_t row_bytes) {
  // What goes wrong here goes wrong again where it can be told.
  Guarded("will read rows", [&] {
    return ForEachChunk(which, [&](int64_t chunk, absl::Span<const int64_t> in_chunk, size_t) -> absl::Status {
      std::string key;
      ChunkPlaces::Place place;
      rocksdb::PinnableSlice whole;
      bool known;
      MNEME_RETURN_IF_ERROR(FindChunk(segment, column, chunk, key, place, whole, &known));
      const FoundValue& value = place.value;
      if (value.file == nullptr) return absl::OkStatus();
      const auto begin = [&](size_t from, size_t to) {
        value.file->Prefetch(value.offset + from, to - from, rocksdb::IOOptions(), nullptr).PermitUncheckedError();
      };
      if (place.header.empty()) begin(0, ChunkHeaderBytes(value.bytes));
      for (const ByteRange& range : ChunkRanges(value.bytes, row_bytes, in_chunk)) begin(range.begin, range.end);
      return absl::OkStatus();
    });
  }).IgnoreError();
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

absl::Status DatabaseImpl::DropLogRange(uint64_t first, uint64_t last) {
  return Wrote(db()->DeleteRange(rocksdb::WriteOptions(), family(kLogFamily), ToSlice(OwnerKey(first)),
                                 ToSlice(OwnerKey(last + 1))),
               "drop logs");
}

absl::Status DatabaseImpl::DeleteLogRecords(absl::Span<const SegmentId> segments) {
  // Record by record while there are few: RocksDB searches all range deletions of a memtable anew after each new one.
  constexpr int kFewRecords = 512;
  const std::set<SegmentId> sorted(segments.begin(), segments.end());
  const std::unique_ptr<rocksdb::Iterator> it(db()->NewIterator(rocksdb::ReadOptions(), family(kLogFamily)));
  rocksdb::WriteBatch batch;
  uint64_t bytes = 0;
  for (const SegmentId segment : sorted) {
    int records = 0;
    for (it->Seek(ToSlice(OwnerKey(segment))); it->Valid() && ParseOwner(ToView(it->key())) == segment; it->Next()) {
      bytes += it->key().size() + it->value().size();
      Reserve(batch, it->key().size());
      if (++records <= kFewRecords)
        MNEME_RETURN_IF_ERROR(FromRocks(batch.Delete(family(kLogFamily), it->key()), "drop logs"));
    }
    MNEME_RETURN_IF_ERROR(FromRocksRead(it->status(), "drop logs"));
    if (records <= kFewRecords) continue;
    Reserve(batch, 2 * OwnerKey(segment).size());
    MNEME_RETURN_IF_ERROR(
        FromRocks(batch.DeleteRange(family(kLogFamily), ToSlice(OwnerKey(segment)), ToSlice(OwnerKey(segment + 1))),
                  "drop logs"));
  }
  if (batch.Count() == 0) return absl::OkStatus();
  MNEME_RETURN_IF_ERROR(Wrote(db()->Write(rocksdb::WriteOptions(), &batch), "drop logs"));
  dropped_bytes_ += bytes;
  return absl::OkStatus();
}

absl::Status DatabaseImpl::DropLogs(absl::Span<const SegmentId> segments) {
  return Guarded("drop logs", [&]() -> absl::Status {
    if (segments.empty()) return absl::OkStatus();
    std::shared_lock<std::shared_mutex> lock;
    MNEME_RETURN_IF_ERROR(LockForWrite(lock));
    // Not synced: in the same log behind the commits that stopped naming them.
    return DeleteLogRecords(segments);
  });
}

absl::Status DatabaseImpl::Compact(bool all) {
  return Guarded("compact", [&]() -> absl::Status {
    constexpr uint64_t kLeastBytes = uint64_t{1} << 20;
    if (dropped_bytes_ < (all ? 1 : kLeastBytes)) return absl::OkStatus();
    std::shared_lock<std::shared_mutex> lock;
    MNEME_RETURN_IF_ERROR(LockForWrite(lock));
    const std::lock_guard compact(compact_mutex_);
    const uint64_t logged = statistics_->getTickerCount(rocksdb::WAL_FILE_BYTES);
    uint64_t beside = logged - logged_before_compact_;
    for (const Family f : {kDefaultFamily, kLogFamily}) {
      uint64_t bytes = 0;
      if (db()->GetIntProperty(family(f), rocksdb::DB::Properties::kTotalSstFilesSize, &bytes)) beside += bytes;
    }
    const uint64_t dropped = dropped_bytes_;
    if (dropped < (all ? 1 : std::max(kLeastBytes, beside / 3))) return absl::OkStatus();
    rocksdb::FlushOptions flush;
    flush.allow_write_stall = true;
    MNEME_RETURN_IF_ERROR(Wrote(db()->Flush(flush, {family(kDefaultFamily), family(kLogFamily)}), "compact"));
    flushes_since_trim_ = 0;
    logged_before_compact_ = logged;
    for (const Family f : {kDefaultFamily, kLogFamily}) {
      rocksdb::CompactRangeOptions options;
      options.exclusive_manual_compaction = false;
      options.allow_write_stall = true;
      MNEME_RETURN_IF_ERROR(Wrote(db()->CompactRange(options, family(f), nullptr, nullptr), "compact"));
    }
    dropped_bytes_ -= dropped;
    return absl::OkStatus();
  });
}

absl::Status DatabaseImpl::RewriteFiles() {
  return Guarded("rewrite files", [&]() -> absl::Status {
    std::shared_lock<std::shared_mutex> lock;
    MNEME_RETURN_IF_ERROR(LockForWrite(lock));
    const std::lock_guard compact(compact_mutex_);
    const uint64_t dropped = dropped_bytes_;
    MNEME_RETURN_IF_ERROR(Wrote(rows_writer_->Flush(), "rewrite files"));
    MNEME_RETURN_IF_ERROR(Wrote(index_writer_->Flush(), "rewrite files"));
    rocksdb::FlushOptions flush;
    flush.allow_write_stall = true;
    std::vector<rocksdb::ColumnFamilyHandle*> families;
    families.reserve(kFamilyCount);
    for (int f = 0; f < kFamilyCount; ++f) families.push_back(family(static_cast<Family>(f)));
    // With nothing left in memory the write-ahead logs are useless, and RocksDB deletes them.
    MNEME_RETURN_IF_ERROR(Wrote(db()->Flush(flush, families), "rewrite files"));
    rocksdb::CompactRangeOptions options;
    options.exclusive_manual_compaction = false;
    options.allow_write_stall = true;
    options.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForceOptimized;
    // A blob file holds the values of one owner (ColumnWriter), and is deleted with the last key that names it.
    options.blob_garbage_collection_policy = rocksdb::BlobGarbageCollectionPolicy::kDisable;
    for (rocksdb::ColumnFamilyHandle* of : families) {
      MNEME_RETURN_IF_ERROR(Wrote(db()->CompactRange(options, of, nullptr, nullptr), "rewrite files"));
    }
    dropped_bytes_ -= dropped;
    return absl::OkStatus();
  });
}

uint64_t DatabaseImpl::ChunkDiskBytes() {
  if (!writer()) return 0;
  const std::shared_lock lock(handle_mutex_);
  if (writer_handle_ == nullptr) return 0;
  uint64_t tree = 0, blobs = 0;
  if (!db()->GetIntProperty(family(kRowsFamily), rocksdb::DB::Properties::kTotalSstFilesSize, &tree)) tree = 0;
  if (!db()->GetIntProperty(family(kRowsFamily), rocksdb::DB::Properties::kLiveBlobFileSize, &blobs)) blobs = 0;
  return tree + blobs;
}

absl::Status DatabaseImpl::DropSegments(absl::Span<const SegmentId> segments) {
  return Guarded("drop segments", [&]() -> absl::Status {
    if (segments.empty()) return absl::OkStatus();
    std::shared_lock<std::shared_mutex> lock;
    MNEME_RETURN_IF_ERROR(LockForWrite(lock));
    // The commits that stopped naming them must not be lost after their rows.
    MNEME_RETURN_IF_ERROR(Wrote(db()->FlushWAL(true), "sync before a drop"));
    MNEME_RETURN_IF_ERROR(DeleteLogRecords(segments));
    MNEME_RETURN_IF_ERROR(Wrote(rows_writer_->Drop(Runs(segments)), "drop segments"));
    return TrimLogs();
  });
}

absl::Status DatabaseImpl::DropIndexes(absl::Span<const IndexId> indexes) {
  return Guarded("drop indices", [&]() -> absl::Status {
    if (indexes.empty()) return absl::OkStatus();
    std::shared_lock<std::shared_mutex> lock;
    MNEME_RETURN_IF_ERROR(LockForWrite(lock));
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
    stats.disk_bytes = DiskBytes(folder_->io_path());
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
