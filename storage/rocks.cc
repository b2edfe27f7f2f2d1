// SPDX-License-Identifier: Apache-2.0
#include "storage/rocks.h"

#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "rocksdb/file_system.h"
#include "rocksdb/table.h"

#include "storage/errno_status.h"
#include "storage/found_value.h"
#include "storage/table_tail.h"

namespace mneme {

thread_local FindValue* FindValue::current_ = nullptr;

namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr mode_t kOwnRights = S_IRUSR | S_IWUSR;

// RocksDB's own log: warnings go to the host, nothing goes to a file.
class HostLogger : public rocksdb::Logger {
 public:
  explicit HostLogger(std::function<void(absl::string_view)> log)
      : Logger(rocksdb::InfoLogLevel::WARN_LEVEL), log_(std::move(log)) {}

  using rocksdb::Logger::Logv;
  void Logv(const char* format, va_list arguments) override {
    if (!log_) return;
    // RocksDB's own check of its tables opens them by their names alone, and says so.
    if (std::strstr(format, "without unique ID to verify") != nullptr) return;
    // Said of each backup.
    if (std::strstr(format, "File Deletions ") != nullptr) return;
    char line[1024];
    const int size = std::vsnprintf(line, sizeof(line), format, arguments);
    if (size <= 0) return;
    try {
      log_(WithRealPaths(absl::string_view(line, std::min<size_t>(size, sizeof(line) - 1))));
    } catch (...) {
      // A host's callback that throws must not unwind RocksDB's threads.
    }
  }

 private:
  const std::function<void(absl::string_view)> log_;
};

// A file of values, whose places can be found without reading them.
class BlobFile : public rocksdb::FSRandomAccessFileWrapper {
 public:
  explicit BlobFile(std::shared_ptr<rocksdb::FSRandomAccessFile> file)
      : FSRandomAccessFileWrapper(file.get()), file_(std::move(file)) {}

  rocksdb::IOStatus Read(uint64_t offset, size_t n, const rocksdb::IOOptions& options, rocksdb::Slice* result,
                         char* scratch, rocksdb::IODebugContext* context) const override {
    FindValue* const find = FindValue::Current();
    // Shorter reads are of the file's own header and footer.
    if (find == nullptr || !find->Find(file_, offset, n))
      return file_->Read(offset, n, options, result, scratch, context);
    return rocksdb::IOStatus::Aborted("found, and not read");
  }

 private:
  const std::shared_ptr<rocksdb::FSRandomAccessFile> file_;
};

class StoreFileSystem : public rocksdb::FileSystemWrapper {
 public:
  StoreFileSystem(const std::shared_ptr<rocksdb::FileSystem>& target, std::shared_ptr<const StoreFolder> folder)
      : FileSystemWrapper(target), folder_(std::move(folder)) {}
  ~StoreFileSystem() override {
    if (lock_ != nullptr) target()->UnlockFile(lock_, rocksdb::IOOptions(), nullptr).PermitUncheckedError();
  }
  const char* Name() const override { return "MnemeFileSystem"; }

  // One lock of one database, taken and given back from one thread at a time.
  rocksdb::IOStatus LockFile(const std::string& name, const rocksdb::IOOptions& options, rocksdb::FileLock** lock,
                             rocksdb::IODebugContext* context) override {
    if (lock_ == nullptr) {
      if (rocksdb::IOStatus status = target()->LockFile(name, options, &lock_, context); !status.ok()) {
        lock_ = nullptr;
        return status;
      }
    }
    *lock = lock_;
    return rocksdb::IOStatus::OK();
  }
  rocksdb::IOStatus UnlockFile(rocksdb::FileLock*, const rocksdb::IOOptions&, rocksdb::IODebugContext*) override {
    return rocksdb::IOStatus::OK();
  }

  rocksdb::IOStatus NewRandomAccessFile(const std::string& name, const rocksdb::FileOptions& options,
                                        std::unique_ptr<rocksdb::FSRandomAccessFile>* file,
                                        rocksdb::IODebugContext* context) override {
    rocksdb::IOStatus status = target()->NewRandomAccessFile(name, options, file, context);
    if (!status.ok()) return status;
    if (absl::EndsWith(name, ".blob")) *file = std::make_unique<BlobFile>(std::shared_ptr(std::move(*file)));
    // RocksDB looks for a missing table under its forerunner's name, too.
    if (!absl::EndsWith(name, ".sst") && !absl::EndsWith(name, ".ldb")) return status;
    uint64_t bytes = 0;
    status = target()->GetFileSize(name, options.io_options, &bytes, context);
    return status.ok() ? CheckTableTail(name, **file, bytes) : status;
  }

  // A host whose umask takes its own rights away would make files that it cannot read again.
  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* file,
                                    rocksdb::IODebugContext* context) override {
    rocksdb::IOStatus status = target()->NewWritableFile(name, options, file, context);
    struct stat info;
    if (status.ok() && ::stat(name.c_str(), &info) == 0 && (info.st_mode & kOwnRights) != kOwnRights) {
      ::chmod(name.c_str(), (info.st_mode & 07777) | kOwnRights);
    }
    return status;
  }

  // RocksDB starts its thread that polls for room only where it can ask how much there is.
  rocksdb::IOStatus GetFreeSpace(const std::string&, const rocksdb::IOOptions&, uint64_t*,
                                 rocksdb::IODebugContext*) override {
    return rocksdb::IOStatus::NotSupported("free space");
  }

 private:
  const std::shared_ptr<const StoreFolder> folder_;
  rocksdb::FileLock* lock_ = nullptr;
};

// Open files are a resource of the host: a quarter of what the process may have.
int MaxOpenFiles() {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 256;
  return static_cast<int>(std::clamp<rlim_t>(limit.rlim_cur / 4, 64, 4096));
}

// The errno value of a failed system call that `status` reports, or 0.
int ErrnoOf(const rocksdb::Status& status) {
  if (status.code() != rocksdb::Status::kIOError) return 0;
  if (status.IsNoSpace() || status.subcode() == rocksdb::Status::kSpaceLimit) return ENOSPC;
  if (status.IsPathNotFound()) return ENOENT;
  if (status.subcode() == rocksdb::Status::kStaleFile) return ESTALE;
  return ErrnoOfText(status.ToString());
}

absl::StatusCode CodeOfIoError(const rocksdb::Status& status) {
  const int error = ErrnoOf(status);
  return error == 0 ? absl::StatusCode::kUnavailable : CodeOfErrno(error);
}

// The text of `status` and what to do about it.
std::string Explained(const rocksdb::Status& status) {
  const absl::string_view advice = AdviceOnErrno(ErrnoOf(status));
  return absl::StrCat(WithRealPaths(status.ToString()), advice.empty() ? "" : "; ", advice);
}

absl::StatusCode CodeOf(const rocksdb::Status& status) {
  switch (status.code()) {
    case rocksdb::Status::kOk: return absl::StatusCode::kOk;
    case rocksdb::Status::kNotFound: return absl::StatusCode::kNotFound;
    case rocksdb::Status::kCorruption: return absl::StatusCode::kDataLoss;
    case rocksdb::Status::kIOError: return CodeOfIoError(status);
    case rocksdb::Status::kAborted:
      return status.subcode() == rocksdb::Status::kMemoryLimit ? absl::StatusCode::kResourceExhausted
                                                               : absl::StatusCode::kAborted;
    case rocksdb::Status::kBusy:
    case rocksdb::Status::kTryAgain:
    case rocksdb::Status::kTimedOut: return absl::StatusCode::kAborted;
    case rocksdb::Status::kIncomplete:
    case rocksdb::Status::kShutdownInProgress: return absl::StatusCode::kUnavailable;
    default: return absl::StatusCode::kInternal;
  }
}

}  // namespace

absl::Status FromRocks(const rocksdb::Status& status, absl::string_view doing) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(CodeOf(status), absl::StrCat(doing, ": ", Explained(status)));
}

absl::Status FromRocksRead(const rocksdb::Status& status, absl::string_view doing) {
  if (status.ok()) return absl::OkStatus();
  // RocksDB looks for a table that is missing under the name of its forerunner's last, and reports that one.
  const std::string text = absl::StrReplaceAll(Explained(status), {{".ldb", ".sst"}});
  const absl::StatusCode code = status.IsPathNotFound() ? absl::StatusCode::kDataLoss : CodeOf(status);
  return absl::Status(code, absl::StrCat(doing, ": ", text));
}

RocksHandle::~RocksHandle() {
  if (!db_) return;
  if (db_->broken()) {
    db_->Leak();
    return;
  }
  try {
    for (rocksdb::ColumnFamilyHandle* family : families_) {
      db_->DestroyColumnFamilyHandle(family).PermitUncheckedError();
    }
    db_->Close().PermitUncheckedError();  // what was acknowledged is durable already
    db_.reset();
  } catch (const std::exception&) {
    // Out of memory while closing: the next open recovers as from a kill.
  }
}

std::shared_ptr<rocksdb::Env> MakeEnv(std::shared_ptr<const StoreFolder> folder) {
  return rocksdb::NewCompositeEnv(std::make_shared<StoreFileSystem>(rocksdb::FileSystem::Default(), std::move(folder)));
}

rocksdb::DBOptions MakeDbOptions(rocksdb::Env* env, const std::function<void(absl::string_view)>& log,
                                 std::shared_ptr<rocksdb::Statistics> statistics) {
  rocksdb::DBOptions options;
  options.env = env;
  options.info_log = std::make_shared<HostLogger>(log);
  options.statistics = std::move(statistics);
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  options.max_background_flushes = 2;  // see ColumnWriter::kFlushBytes
  options.max_background_compactions = 1;
  options.max_open_files = MaxOpenFiles();
  // The device begins while a file is being written, not when that waits to be synced.
  options.bytes_per_sync = kMiB;
  // A small store stays small: nothing is allocated ahead.
  options.allow_fallocate = false;
  options.manifest_preallocation_size = 64 << 10;
  options.max_manifest_file_size = kMiB;
  options.keep_log_file_num = 1;
  options.recycle_log_file_num = 0;
  options.max_total_wal_size = 16 * kMiB;
  // Recovery from I/O errors is tried by the next write (DatabaseImpl::LockWriter), not by a thread of RocksDB's own.
  options.max_bgerror_resume_count = 0;
  // A truncated file that is mapped is a signal; pread returns an error.
  options.allow_mmap_reads = false;
  options.allow_mmap_writes = false;
  return options;
}

std::shared_ptr<rocksdb::Cache> MakeBlockCache() {
  return rocksdb::NewLRUCache(16 * kMiB);
}

std::vector<rocksdb::ColumnFamilyDescriptor> MakeFamilies(const std::shared_ptr<rocksdb::Cache>& block_cache) {
  rocksdb::BlockBasedTableOptions table;
  table.format_version = kTableVersion;
  // RocksDB's default since 7.8, which CheckTableTail counts on.
  table.checksum = rocksdb::kXXH3;
  table.block_cache = block_cache;
  table.cache_index_and_filter_blocks = true;

  rocksdb::ColumnFamilyOptions common;
  common.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  common.compression = rocksdb::kNoCompression;
  common.bottommost_compression = rocksdb::kNoCompression;
  common.write_buffer_size = 4 * kMiB;
  common.max_bytes_for_level_base = 64 * kMiB;

  // A token's records live until its chunk is full; most die in the memtable if it is large enough.
  rocksdb::ColumnFamilyOptions log = common;
  log.write_buffer_size = 16 * kMiB;

  // Values go to blob files, the tree holds only where. Blobs are never moved: a blob file holds one owner's values
  // (ColumnWriter), so that it dies as a whole when its owner is dropped. Small tree files, so that a compaction
  // touches few keys beside the new ones.
  rocksdb::ColumnFamilyOptions rows = common;
  rows.enable_blob_files = true;
  rows.min_blob_size = kMinBlobBytes;
  rows.blob_compression_type = rocksdb::kNoCompression;
  rows.enable_blob_garbage_collection = false;
  rows.write_buffer_size = 64 * kMiB;  // ColumnWriter flushes before that
  rows.max_write_buffer_number = 3;
  rows.target_file_size_base = 2 * kMiB;
  rows.level0_file_num_compaction_trigger = 8;

  rocksdb::ColumnFamilyOptions index = rows;

  std::vector<rocksdb::ColumnFamilyDescriptor> families(kFamilyCount);
  const rocksdb::ColumnFamilyOptions* options[kFamilyCount] = {&common, &log, &rows, &index};
  for (int i = 0; i < kFamilyCount; ++i) families[i] = {kFamilyNames[i], *options[i]};
  return families;
}

}  // namespace mneme
