#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <set>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

#include "base/checksum.h"
#include "base/status.h"
#include "storage/coding.h"
#include "storage/database_impl.h"
#include "storage/keys.h"

// Opening: which of the many things a path can be is it, and what has a writer left behind.

namespace mneme {
namespace {

namespace fs = std::filesystem;
using Mode = DatabaseOptions::Mode;

constexpr uint32_t kStoreMagic = 0x4d454e4d;  // "MNEM"
constexpr uint32_t kFormatVersion = 1;
constexpr int kReadAttempts = 5;  // a writer may delete files between our listing and our opening them

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

absl::Status NoStore(const std::string& path) { return absl::NotFoundError(absl::StrCat("no store at ", path)); }

absl::Status NotOurs(const std::string& path) {
  return absl::FailedPreconditionError(absl::StrCat("a RocksDB database, but not a mneme store: ", path));
}

// True if `path` has database files that a new database would overwrite.
bool HasRemains(const std::string& path) {
  std::error_code error;
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    const std::string extension = it->path().extension().string();
    std::error_code ignored;
    if (extension == ".sst" || extension == ".blob" || (extension == ".log" && fs::file_size(it->path(), ignored) > 0)) {
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
    const std::string message = absl::StrCat("cannot create the folder ", path, ": ", error.message());
    if (error == std::errc::no_space_on_device) return absl::ResourceExhaustedError(message);
    if (error == std::errc::not_a_directory) return absl::InvalidArgumentError(message);
    return absl::UnavailableError(message);
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

// For a database whose column families are not the four expected ones. OK if its creation was cut short.
absl::Status Probe(const std::string& path, const rocksdb::DBOptions& db_options) {
  std::vector<std::string> names;
  MNEME_RETURN_IF_ERROR(FromRocks(rocksdb::DB::ListColumnFamilies(db_options, path, &names), "open " + path));
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* raw = nullptr;
  MNEME_RETURN_IF_ERROR(FromRocks(
      rocksdb::DB::OpenForReadOnly(db_options, path, {MakeFamilies()[kDefaultFamily]}, &handles, &raw), "open " + path));
  const std::unique_ptr<rocksdb::DB> db(raw);
  std::string value;
  const rocksdb::Status status = db->Get(rocksdb::ReadOptions(), handles[0], ToSlice(kVersionKey), &value);
  const bool empty = Empty(*db, handles[0]);
  for (rocksdb::ColumnFamilyHandle* handle : handles) db->DestroyColumnFamilyHandle(handle);
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

absl::StatusOr<std::string> MakeSecondaryFolder() {
  const char* root = std::getenv("TMPDIR");
  std::string folder = absl::StrCat(root != nullptr && *root != '\0' ? root : "/tmp", "/mneme-follow-XXXXXX");
  if (mkdtemp(folder.data()) == nullptr) {
    return absl::UnavailableError(absl::StrCat("cannot create a temporary folder like ", folder));
  }
  return folder;
}

absl::Status FromOpen(const rocksdb::Status& status, const std::string& path) {
  if (status.IsIOError() && (absl::StrContains(status.ToString(), "lock hold by current process") ||
                             absl::StrContains(status.ToString(), "While lock file"))) {
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
  const fs::file_status kind = fs::status(path, error);
  if (fs::exists(kind) && !fs::is_directory(kind)) {
    return absl::InvalidArgumentError(absl::StrCat("path: expected a folder, got a file: ", path));
  }
  const bool create = options.mode == Mode::kReadWrite && options.create_if_missing;
  const bool has_store = fs::exists(fs::path(path) / "CURRENT", error);
  if (!has_store) {
    // A new database would delete the files of one that has only lost its CURRENT.
    if (HasRemains(path)) return absl::DataLossError(absl::StrCat("the file CURRENT of the store is missing: ", path));
    if (!create) return NoStore(path);
    MNEME_RETURN_IF_ERROR(CreateFolder(path));
  }
  std::unique_ptr<DatabaseImpl> database(new DatabaseImpl(path, options));
  MNEME_RETURN_IF_ERROR(database->OpenRocks(!has_store));
  MNEME_RETURN_IF_ERROR(database->CheckVersion(create));
  if (database->writer()) {
    MNEME_RETURN_IF_ERROR(database->LoadIds());
    MNEME_RETURN_IF_ERROR(database->CollectOrphans());
  }
  return database;
}

DatabaseImpl::DatabaseImpl(std::string path, const DatabaseOptions& options)
    : path_(std::move(path)), options_(options), statistics_(rocksdb::CreateDBStatistics()) {
  statistics_->set_stats_level(rocksdb::StatsLevel::kExceptHistogramOrTimers);
}

DatabaseImpl::~DatabaseImpl() {
  try {
    if (db_ != nullptr) {
      for (rocksdb::ColumnFamilyHandle* handle : families_) {
        db_->DestroyColumnFamilyHandle(handle).PermitUncheckedError();
      }
      db_->Close().PermitUncheckedError();  // what was acknowledged is durable already
      db_.reset();
    }
  } catch (const std::exception& e) {
    Log(absl::StrCat("close: ", e.what()));
  }
  std::error_code ignored;
  if (!secondary_path_.empty()) fs::remove_all(secondary_path_, ignored);
}

absl::Status DatabaseImpl::OpenRocks(bool create) {
  rocksdb::DBOptions db_options = MakeDbOptions(options_.log, statistics_);
  if (options_.mode == Mode::kFollow) {
    db_options.max_open_files = -1;  // files that the writer deletes stay readable
    MNEME_ASSIGN_OR_RETURN(secondary_path_, MakeSecondaryFolder());
  }
  db_options.create_if_missing = create;
  db_options.create_missing_column_families = create;
  const std::vector<rocksdb::ColumnFamilyDescriptor> families = MakeFamilies();
  rocksdb::Status status;
  bool probed = false;
  for (int attempt = 0; attempt < kReadAttempts; ++attempt) {
    rocksdb::DB* db = nullptr;
    switch (options_.mode) {
      case Mode::kReadWrite: status = rocksdb::DB::Open(db_options, path_, families, &families_, &db); break;
      case Mode::kReadOnly:
        status = rocksdb::DB::OpenForReadOnly(db_options, path_, families, &families_, &db);
        break;
      case Mode::kFollow:
        status = rocksdb::DB::OpenAsSecondary(db_options, path_, secondary_path_, families, &families_, &db);
        break;
    }
    if (status.ok()) {
      db_.reset(db);
      break;
    }
    if (status.IsInvalidArgument() && !probed) {
      probed = true;
      MNEME_RETURN_IF_ERROR(Probe(path_, db_options));
      if (!writer()) return NoStore(path_);
      db_options.create_missing_column_families = true;
    } else if (writer()) {
      break;
    }
  }
  if (!status.ok()) return FromOpen(status, path_);
  if (writer()) {
    rows_writer_.emplace(db_.get(), family(kRowsFamily));
    index_writer_.emplace(db_.get(), family(kIndexFamily));
  }
  return absl::OkStatus();
}

absl::Status DatabaseImpl::CheckVersion(bool create) {
  std::string value;
  const rocksdb::Status status =
      db_->Get(rocksdb::ReadOptions(), family(kDefaultFamily), ToSlice(kVersionKey), &value);
  if (status.ok()) return DecodeVersion(value, path_);
  if (!status.IsNotFound()) return MapRead(status, "open " + path_);
  for (rocksdb::ColumnFamilyHandle* handle : families_) {
    if (!Empty(*db_, handle)) return NotOurs(path_);
  }
  if (!create) return NoStore(path_);
  rocksdb::WriteOptions write;
  write.sync = true;
  return FromRocks(db_->Put(write, family(kDefaultFamily), ToSlice(kVersionKey), ToSlice(EncodeVersion())),
                   "create the store");
}

absl::Status DatabaseImpl::LoadIds() {
  uint64_t segment = 0;  // greatest id that may have been used
  uint64_t index = 0;
  std::string value;
  const rocksdb::Status status =
      db_->Get(rocksdb::ReadOptions(), family(kDefaultFamily), ToSlice(kNextIdsKey), &value);
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
    const std::unique_ptr<rocksdb::Iterator> it(db_->NewIterator(rocksdb::ReadOptions(), family(f)));
    it->SeekToLast();
    if (it->Valid()) *greatest = std::max(*greatest, ParseOwner(ToView(it->key())).value_or(0));
    if (!it->status().ok()) return MapRead(it->status(), "open " + path_);
  }
  next_segment_ = segment + 1;
  next_index_ = index + 1;
  segment_bound_ = segment + 1;
  index_bound_ = index + 1;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<uint64_t>> DatabaseImpl::Owners(Family f) {
  std::vector<uint64_t> owners;
  const std::unique_ptr<rocksdb::Iterator> it(db_->NewIterator(rocksdb::ReadOptions(), family(f)));
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
    MNEME_RETURN_IF_ERROR(DropLogs(first, last));
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
