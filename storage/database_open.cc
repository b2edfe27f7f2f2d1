// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <set>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

#include "base/checksum.h"
#include "base/fork_watch.h"
#include "base/status.h"
#include "storage/coding.h"
#include "storage/database_impl.h"
#include "storage/errno_status.h"
#include "storage/keys.h"
#include "storage/memory_check.h"

// Opening: which of the many things a path can be is it, and what has a writer left behind.

namespace mneme {
namespace {

namespace fs = std::filesystem;
using Mode = DatabaseOptions::Mode;

constexpr uint32_t kStoreMagic = 0x4d454e4d;  // "MNEM"
constexpr uint32_t kFormatVersion = 1;
constexpr int kViewAttempts = 20;  // a writer may change the files while we open them

std::string EncodeVersion() {
  std::string value;
  AppendLittle(value, kStoreMagic);
  AppendLittle(value, kFormatVersion);
  AppendLittle(value, Checksum32(value.data(), value.size()));
  return value;
}

absl::Status DecodeVersion(absl::string_view value, const std::string& path) {
  if (value.size() != 12 || LoadLittle<uint32_t>(value.data()) != kStoreMagic ||
      LoadLittle<uint32_t>(value.data() + 8) != Checksum32(value.data(), 8)) {
    return absl::DataLossError(absl::StrCat("the version record of the store is damaged: ", path));
  }
  const uint32_t version = LoadLittle<uint32_t>(value.data() + 4);
  if (version != kFormatVersion) {
    return absl::FailedPreconditionError(absl::StrCat("a newer mneme made this store (format ", version,
                                                      ", this one reads ", kFormatVersion, "): ", path));
  }
  return absl::OkStatus();
}

absl::Status NoStore(const std::string& path) {
  return absl::NotFoundError(absl::StrCat("no store at ", path));
}

absl::Status NotOurs(const std::string& path) {
  return absl::FailedPreconditionError(absl::StrCat("a RocksDB database, but not a mneme store: ", path));
}

// The errno value with which the system refuses to tell about `path`; 0 if it tells, or if there is no such file.
int StatErrno(const std::string& path) {
  struct stat info;
  return ::stat(path.c_str(), &info) == 0 || errno == ENOENT ? 0 : errno;
}

// Errors: the code of the system's error if this process may not read the folder, or, for a writer, not write it.
absl::Status CheckRights(const std::string& path, bool writer) {
  if (::faccessat(AT_FDCWD, path.c_str(), R_OK | X_OK | (writer ? W_OK : 0), AT_EACCESS) == 0) return absl::OkStatus();
  return FromErrno(
      errno, absl::StrCat("path: expected a folder that this process may ", writer ? "write" : "read", ", got ", path));
}

// True if `path` has database files that a new database would overwrite.
bool HasRemains(const std::string& path) {
  std::error_code error;
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    const std::string extension = it->path().extension().string();
    std::error_code ignored;
    if (extension == ".sst" || extension == ".blob" ||
        (extension == ".log" && fs::file_size(it->path(), ignored) > 0)) {
      return true;
    }
  }
  return false;
}

// Creates the folder and makes its name durable.
absl::Status CreateFolder(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) {
    if (error == std::errc::file_exists) {
      return absl::InvalidArgumentError(
          absl::StrCat("path: expected a folder or nothing, got a symbolic link to nothing: ", path));
    }
    return FromErrno(error.value(), absl::StrCat("create the folder ", path));
  }
  fs::path parent = fs::absolute(path, error).lexically_normal();
  if (!parent.has_filename()) parent = parent.parent_path();
  const int fd = ::open(parent.parent_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd >= 0) {
    ::fsync(fd);  // best effort: some file systems cannot sync a folder
    ::close(fd);
  }
  return absl::OkStatus();
}

bool Empty(rocksdb::DB& db, rocksdb::ColumnFamilyHandle* family) {
  const std::unique_ptr<rocksdb::Iterator> it(db.NewIterator(rocksdb::ReadOptions(), family));
  it->SeekToFirst();
  return !it->Valid() && it->status().ok();
}

// Whether the database has other column families than the four expected ones, as far as can be told.
bool HasOtherFamilies(const std::string& path, const rocksdb::DBOptions& db_options) {
  std::vector<std::string> names;
  if (!rocksdb::DB::ListColumnFamilies(db_options, path, &names).ok()) return false;
  return !std::is_permutation(names.begin(), names.end(), std::begin(kFamilyNames), std::end(kFamilyNames));
}

// For such a database. OK if its creation was cut short.
absl::Status Probe(const StoreFolder& folder, rocksdb::DBOptions db_options) {
  const std::string& path = folder.path();
  db_options.env = rocksdb::Env::Default();  // it may be anybody's, with other settings than CheckTableTail knows
  std::vector<std::string> names;
  MNEME_RETURN_IF_ERROR(
      FromRocks(rocksdb::DB::ListColumnFamilies(db_options, folder.io_path(), &names), "open " + path));
  RocksHandle db(nullptr);
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* raw = nullptr;
  MNEME_RETURN_IF_ERROR(
      FromRocks(rocksdb::DB::OpenForReadOnly(db_options, folder.io_path(),
                                             {MakeFamilies(MakeBlockCache())[kDefaultFamily]}, &handles, &raw),
                "open " + path));
  db.Adopt(raw, std::move(handles));
  std::string value;
  const rocksdb::Status status =
      db->Get(rocksdb::ReadOptions(), db.family(kDefaultFamily), ToSlice(kVersionKey), &value);
  const bool empty = Empty(*db.get(), db.family(kDefaultFamily));
  if (status.ok()) {
    MNEME_RETURN_IF_ERROR(DecodeVersion(value, path));
    return absl::DataLossError(absl::StrCat("the store has lost or gained column families: ", path));
  }
  if (!status.IsNotFound()) return FromRocks(status, "open " + path);
  const bool ours = std::all_of(names.begin(), names.end(), [](const std::string& name) {
    return std::find(std::begin(kFamilyNames), std::end(kFamilyNames), name) != std::end(kFamilyNames);
  });
  return empty && ours ? absl::OkStatus() : NotOurs(path);
}

// What the files say about the writer's progress: `tree` changes with every flush and compaction, `all` with every
// commit, too.
struct Signature {
  std::string tree;
  std::string all;
};

Signature SignatureOf(const std::string& path) {
  Signature signature;
  std::vector<std::string> logs;
  std::error_code error;
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    std::error_code ignored;
    const std::string entry = absl::StrCat(name, ":", fs::file_size(it->path(), ignored), "\n");
    if (absl::StartsWith(name, "MANIFEST-")) signature.tree += entry;
    if (it->path().extension() == ".log") logs.push_back(entry);
  }
  std::sort(logs.begin(), logs.end());
  signature.all = signature.tree;
  for (const std::string& log : logs) signature.all += log;
  return signature;
}

absl::Status FromOpen(const rocksdb::Status& status, const std::string& path) {
  const std::string text = status.ToString();
  // fcntl refuses a lock that is taken with EAGAIN or EACCES; its other errors are the file system's.
  const auto is_taken = [&] { return ErrnoOfText(text) == EAGAIN || ErrnoOfText(text) == EACCES; };
  if (status.IsIOError() && (absl::StrContains(text, "lock hold by current process") ||
                             (absl::StrContains(text, "While lock file") && is_taken()))) {
    return absl::FailedPreconditionError(absl::StrCat("store is open by another writer: ", path));
  }
  return FromRocksRead(status, absl::StrCat("open ", path));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Database>> Database::Open(const std::string& path, const DatabaseOptions& options) {
  return Guarded("open", [&] { return DatabaseImpl::Open(path, options); });
}

absl::StatusOr<std::unique_ptr<Database>> DatabaseImpl::Open(const std::string& path, const DatabaseOptions& options) {
  if (path.empty()) return absl::InvalidArgumentError("path: expected a folder, got an empty string");
  std::error_code error;
  if (const int refused = StatErrno(path); refused != 0) return FromErrno(refused, absl::StrCat("open ", path));
  const fs::file_status kind = fs::status(path, error);
  if (fs::exists(kind) && !fs::is_directory(kind)) {
    return absl::InvalidArgumentError(absl::StrCat("path: expected a folder, got a file: ", path));
  }
  if (fs::exists(kind)) MNEME_RETURN_IF_ERROR(CheckRights(path, options.mode == Mode::kReadWrite));
  MNEME_RETURN_IF_ERROR(CheckMemoryForWrite());  // an open replays logs, which writes
  const bool writes = options.mode == Mode::kReadWrite;
  const bool create = writes && options.create_if_missing;
  if (kind.type() == fs::file_type::not_found) {
    if (!create) return NoStore(path);
    MNEME_RETURN_IF_ERROR(CreateFolder(path));
  }
  MNEME_ASSIGN_OR_RETURN(std::shared_ptr<const StoreFolder> folder, StoreFolder::Open(path, writes));
  const std::string current = folder->io_path() + "/CURRENT";
  if (const int refused = StatErrno(current); refused != 0) {
    return FromErrno(refused, absl::StrCat("open CURRENT of the store ", path));
  }
  const bool has_store = fs::exists(current, error);
  if (!has_store) {
    // A new database would delete the files of one that has only lost its CURRENT.
    if (HasRemains(folder->io_path())) {
      return absl::DataLossError(absl::StrCat("the file CURRENT of the store is missing: ", path));
    }
    if (!create) return NoStore(path);
  }
  std::unique_ptr<DatabaseImpl> database(new DatabaseImpl(path, std::move(folder), options));
  if (database->writer()) {
    MNEME_RETURN_IF_ERROR(database->OpenWriter(!has_store));
  } else {
    const std::lock_guard refresh(database->refresh_mutex_);
    MNEME_ASSIGN_OR_RETURN(std::shared_ptr<RocksHandle> view, database->OpenView(database->view_signature_));
    database->rows_signature_ = database->view_signature_;
    const std::lock_guard lock(database->view_mutex_);
    database->view_ = database->rows_view_ = std::move(view);
  }
  SkipEarlierDestructorsInForkedChild();
  MNEME_RETURN_IF_ERROR(database->CheckVersion(create));
  if (database->writer()) {
    MNEME_RETURN_IF_ERROR(database->LoadIds());
    MNEME_RETURN_IF_ERROR(database->CollectOrphans());
  }
  return database;
}

DatabaseImpl::DatabaseImpl(std::string path, std::shared_ptr<const StoreFolder> folder, const DatabaseOptions& options)
    : path_(std::move(path)),
      folder_(std::move(folder)),
      options_(options),
      statistics_(rocksdb::CreateDBStatistics()),
      block_cache_(MakeBlockCache()) {
  statistics_->set_stats_level(rocksdb::StatsLevel::kExceptHistogramOrTimers);
}

absl::Status DatabaseImpl::OpenWriter(bool create) {
  if (writer_env_ == nullptr) writer_env_ = MakeEnv(folder_);
  rocksdb::DBOptions db_options = MakeDbOptions(writer_env_.get(), options_.log, statistics_);
  db_options.create_if_missing = create;
  db_options.create_missing_column_families = create;
  auto handle = RocksHandle::New(writer_env_);
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* db = nullptr;
  rocksdb::Status status = rocksdb::DB::Open(db_options, folder_->io_path(), MakeFamilies(block_cache_), &handles, &db);
  if (status.IsInvalidArgument() || (status.IsCorruption() && HasOtherFamilies(folder_->io_path(), db_options))) {
    MNEME_RETURN_IF_ERROR(Probe(*folder_, db_options));
    db_options.create_missing_column_families = true;
    status = rocksdb::DB::Open(db_options, folder_->io_path(), MakeFamilies(block_cache_), &handles, &db);
  }
  if (!status.ok()) return FromOpen(status, path_);
  handle->Adopt(db, std::move(handles));
  writer_handle_ = std::move(handle);
  rows_writer_.emplace(this->db(), family(kRowsFamily));
  index_writer_.emplace(this->db(), family(kIndexFamily));
  const std::lock_guard lock(view_mutex_);
  view_ = rows_view_ = writer_handle_;
  return absl::OkStatus();
}

void DatabaseImpl::CloseHandles() {
  {
    const std::lock_guard lock(view_mutex_);
    view_ = rows_view_ = nullptr;
  }
  rows_writer_.reset();
  index_writer_.reset();
  writer_handle_.reset();
}

absl::Status DatabaseImpl::Reopen() {
  Log("the database is opened again after an error");
  ++epoch_;
  CloseHandles();
  const absl::Status status = OpenWriter(false);
  if (status.ok()) return status;
  // Until a later write succeeds in it, what is committed can still be read.
  std::string ignored;
  absl::StatusOr<std::shared_ptr<RocksHandle>> view = OpenView(ignored);
  if (view.ok()) {
    const std::lock_guard lock(view_mutex_);
    view_ = rows_view_ = *std::move(view);
  }
  return status;
}

absl::StatusOr<std::shared_ptr<RocksHandle>> DatabaseImpl::OpenView(std::string& signature) {
  const std::shared_ptr<rocksdb::Env> env = MakeEnv(folder_);
  const rocksdb::DBOptions db_options = MakeDbOptions(env.get(), options_.log, statistics_);
  rocksdb::Status status;
  std::shared_ptr<RocksHandle> view;
  for (int attempt = 0; attempt < kViewAttempts; ++attempt) {
    const Signature before = SignatureOf(folder_->io_path());
    auto handle = RocksHandle::New(env);
    std::vector<rocksdb::ColumnFamilyHandle*> handles;
    rocksdb::DB* db = nullptr;
    status = rocksdb::DB::OpenForReadOnly(db_options, folder_->io_path(), MakeFamilies(block_cache_), &handles, &db);
    if (status.IsInvalidArgument() || (status.IsCorruption() && HasOtherFamilies(folder_->io_path(), db_options))) {
      MNEME_RETURN_IF_ERROR(Probe(*folder_, db_options));
      return NoStore(path_);
    }
    if (!status.ok()) continue;
    handle->Adopt(db, std::move(handles));
    view = std::move(handle);
    // The tree is read before the log: if it has changed meanwhile, a commit may have come without its chunks.
    if (SignatureOf(folder_->io_path()).tree == before.tree) {
      signature = before.all;
      return view;
    }
  }
  if (view == nullptr) return FromOpen(status, path_);
  return absl::UnavailableError(absl::StrCat("open ", path_, ": the writer is too busy for a consistent view"));
}

absl::StatusOr<DatabaseImpl::View> DatabaseImpl::ViewOf(Seen which) {
  std::shared_lock<std::shared_mutex> lock;
  // A reader's views are replaced while others use them; only a writer's must be closed before.
  if (writer()) lock = std::shared_lock(handle_mutex_);
  std::shared_ptr<RocksHandle> handle;
  {
    const std::lock_guard guard(view_mutex_);
    handle = which == Seen::kView ? view_ : rows_view_;
  }
  if (handle != nullptr && handle->broken()) {
    MNEME_RETURN_IF_ERROR(ReplaceBrokenView(which));
    const std::lock_guard guard(view_mutex_);
    handle = which == Seen::kView ? view_ : rows_view_;
  }
  if (handle != nullptr) return View(std::move(lock), std::move(handle));
  return absl::UnavailableError(absl::StrCat("the store could not be opened again after an error: ", path_));
}

absl::Status DatabaseImpl::ReplaceBrokenView(Seen which) {
  std::string ignored;  // an older signature has a reader look for a newer view sooner, and does no harm
  MNEME_ASSIGN_OR_RETURN(std::shared_ptr<RocksHandle> view, OpenView(ignored));
  const std::lock_guard guard(view_mutex_);
  for (std::shared_ptr<RocksHandle>* each : {&view_, &rows_view_}) {
    if (*each != nullptr && (*each)->broken()) *each = view;
  }
  // Another thread may have put one there that broke meanwhile.
  const std::shared_ptr<RocksHandle>& now = which == Seen::kView ? view_ : rows_view_;
  return now != nullptr && now->broken() ? OutOfMemoryError("open a view") : absl::OkStatus();
}

bool DatabaseImpl::WriterWentOn(Seen from) {
  const std::lock_guard refresh(refresh_mutex_);
  return SignatureOf(folder_->io_path()).all != (from == Seen::kView ? view_signature_ : rows_signature_);
}

absl::StatusOr<bool> DatabaseImpl::RefreshRowsView() {
  if (writer()) return false;
  const std::lock_guard refresh(refresh_mutex_);
  if (SignatureOf(folder_->io_path()).all == rows_signature_) return false;
  MNEME_ASSIGN_OR_RETURN(std::shared_ptr<RocksHandle> view, OpenView(rows_signature_));
  const std::lock_guard lock(view_mutex_);
  rows_view_.swap(view);
  return true;
}

absl::Status DatabaseImpl::CatchUp() {
  if (options_.mode != Mode::kFollow) return absl::OkStatus();
  return Guarded("catch up", [&]() -> absl::Status {
    const std::lock_guard refresh(refresh_mutex_);
    if (SignatureOf(folder_->io_path()).all == view_signature_) return absl::OkStatus();
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<RocksHandle> view, OpenView(view_signature_));
    rows_signature_ = view_signature_;
    const std::lock_guard lock(view_mutex_);
    view_ = rows_view_ = view;
    return absl::OkStatus();
  });
}

absl::Status DatabaseImpl::CheckVersion(bool create) {
  MNEME_ASSIGN_OR_RETURN(const View view, ViewOf(Seen::kView));
  std::string value;
  const rocksdb::Status status =
      view->Get(rocksdb::ReadOptions(), view.family(kDefaultFamily), ToSlice(kVersionKey), &value);
  if (status.ok()) return DecodeVersion(value, path_);
  if (!status.IsNotFound()) return MapRead(status, "open " + path_);
  for (int f = 0; f < kFamilyCount; ++f) {
    if (!Empty(*view.get(), view.family(static_cast<Family>(f)))) return NotOurs(path_);
  }
  if (!create) return NoStore(path_);
  rocksdb::WriteOptions write;
  write.sync = true;
  return FromRocks(db()->Put(write, family(kDefaultFamily), ToSlice(kVersionKey), ToSlice(EncodeVersion())),
                   "create the store");
}

absl::Status DatabaseImpl::LoadIds() {
  uint64_t segment = 0;  // greatest id that may have been used
  uint64_t index = 0;
  std::string value;
  const rocksdb::Status status =
      db()->Get(rocksdb::ReadOptions(), family(kDefaultFamily), ToSlice(kNextIdsKey), &value);
  if (status.ok() && value.size() == 20 &&
      LoadLittle<uint32_t>(value.data() + 16) == Checksum32(value.data(), 16, KeySeed(kNextIdsKey))) {
    segment = LoadLittle<uint64_t>(value.data());
    index = LoadLittle<uint64_t>(value.data() + 8);
  } else if (status.ok()) {
    Log("the record of used ids is damaged; taken from what is stored");
  } else if (!status.IsNotFound()) {
    return MapRead(status, "open " + path_);
  }
  // What lies in the families counts, too: a transaction that did not commit left its chunks but no reservation.
  const std::pair<Family, uint64_t*> families[] = {
      {kRowsFamily, &segment}, {kLogFamily, &segment}, {kIndexFamily, &index}};
  for (const auto& [f, greatest] : families) {
    MNEME_ASSIGN_OR_RETURN(const std::vector<uint64_t> owners, Owners(f));
    if (!owners.empty()) *greatest = std::max(*greatest, owners.back());
  }
  next_segment_ = segment + 1;
  next_index_ = index + 1;
  segment_bound_ = segment + 1;
  index_bound_ = index + 1;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<uint64_t>> DatabaseImpl::Owners(Family f) {
  std::vector<uint64_t> owners;
  const std::unique_ptr<rocksdb::Iterator> it(db()->NewIterator(rocksdb::ReadOptions(), family(f)));
  it->SeekToFirst();
  while (it->Valid()) {
    const std::optional<uint64_t> owner = ParseOwner(ToView(it->key()));
    if (!owner) return absl::DataLossError(absl::StrCat("a malformed key in column family ", kFamilyNames[f]));
    owners.push_back(*owner);
    if (*owner == UINT64_MAX) break;
    it->Seek(ToSlice(OwnerKey(*owner + 1)));
  }
  if (!it->status().ok()) return MapRead(it->status(), absl::StrCat("list column family ", kFamilyNames[f]));
  return owners;
}

absl::Status DatabaseImpl::CollectOrphans() {
  std::set<uint64_t> named_segments;
  std::set<uint64_t> named_indexes;
  MNEME_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListMemories());
  for (const std::string& name : names) {
    const absl::StatusOr<MemoryManifest> manifest = ReadManifest(name);
    if (!manifest.ok()) {
      // Its rows may yet be saved by somebody; nothing can be told to be an orphan.
      Log(absl::StrCat("nothing is collected: ", manifest.status().message()));
      return absl::OkStatus();
    }
    for (const SegmentRef& segment : manifest->segments) named_segments.insert(segment.id);
    for (const IndexRef& index : manifest->indexes) named_indexes.insert(index.id);
    for (const AttachmentRef& attachment : manifest->attachments) named_indexes.insert(attachment.id);
  }
  std::set<uint64_t> stored_segments;
  for (const Family f : {kRowsFamily, kLogFamily}) {
    MNEME_ASSIGN_OR_RETURN(const std::vector<uint64_t> owners, Owners(f));
    stored_segments.insert(owners.begin(), owners.end());
  }
  MNEME_ASSIGN_OR_RETURN(const std::vector<uint64_t> stored_indexes, Owners(kIndexFamily));

  // Orphans without a named id between them go as one range.
  const auto collect = [&](const auto& stored, const std::set<uint64_t>& named, const auto& drop) -> absl::Status {
    auto it = stored.begin();
    while (it != stored.end()) {
      if (named.count(*it) != 0) {
        ++it;
        continue;
      }
      const uint64_t first = *it;
      uint64_t last = first;
      for (; it != stored.end() && named.count(*it) == 0; ++it, ++orphans_collected_) last = *it;
      MNEME_RETURN_IF_ERROR(drop(first, last));
    }
    return absl::OkStatus();
  };
  MNEME_RETURN_IF_ERROR(collect(stored_segments, named_segments, [&](uint64_t first, uint64_t last) -> absl::Status {
    MNEME_RETURN_IF_ERROR(DropLogRange(first, last));
    return Wrote(rows_writer_->Drop(first, last), "collect orphans");
  }));
  MNEME_RETURN_IF_ERROR(collect(stored_indexes, named_indexes, [&](uint64_t first, uint64_t last) {
    return Wrote(index_writer_->Drop(first, last), "collect orphans");
  }));
  if (orphans_collected_ > 0) {
    Log(absl::StrCat("collected ", orphans_collected_, " segments and indices that no memory names"));
  }
  return absl::OkStatus();
}

}  // namespace mneme
