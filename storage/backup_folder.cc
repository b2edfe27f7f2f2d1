// SPDX-License-Identifier: Apache-2.0
#include "storage/backup_folder.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "storage/errno_status.h"
#include "storage/rocks.h"

namespace mneme {
namespace {

namespace fs = std::filesystem;

// What RocksDB's BackupEngine makes in its folder. "meta" has a file for each backup.
constexpr const char* kOwnEntries[] = {"meta", "private", "shared", "shared_checksum", "LOCK"};

absl::Status NoBackups(const std::string& path) {
  return absl::NotFoundError(absl::StrCat("no backups at ", path));
}

}  // namespace

BackupInfo ToBackupInfo(const rocksdb::BackupInfo& info) {
  BackupInfo result;
  result.id = info.backup_id;
  result.unix_seconds = info.timestamp;
  result.bytes = static_cast<int64_t>(info.size);
  result.files = info.number_files;
  return result;
}

absl::StatusOr<std::unique_ptr<BackupFolder>> BackupFolder::Open(const std::string& path) {
  if (path.empty()) return absl::InvalidArgumentError("folder: expected a folder of backups, got an empty string");
  std::unique_ptr<BackupFolder> backups(new BackupFolder());
  backups->path_ = path;
  std::error_code error;
  if (!fs::exists(path, error) && (!error || error == std::errc::no_such_file_or_directory)) return NoBackups(path);
  MNEME_ASSIGN_OR_RETURN(backups->folder_, StoreFolder::Open(path, /*lock=*/false));
  const std::string& io_path = backups->folder_->io_path();
  if (!fs::is_directory(io_path + "/meta", error)) {
    if (error && error != std::errc::no_such_file_or_directory) return FromErrno(error.value(), "open " + path);
    return NoBackups(path);
  }
  backups->env_ = MakeMeteredEnv(backups->meter_);
  rocksdb::BackupEngineReadOnly* engine = nullptr;
  const rocksdb::BackupEngineOptions options(io_path, backups->env_.get());
  MNEME_RETURN_IF_ERROR(FromRocksRead(rocksdb::BackupEngineReadOnly::Open(options, backups->env_.get(), &engine),
                                      "open the backups at " + path));
  backups->engine_.reset(engine);
  return backups;
}

std::vector<BackupInfo> BackupFolder::List() const {
  std::vector<rocksdb::BackupInfo> sound;
  engine_->GetBackupInfo(&sound);
  std::vector<BackupInfo> list;
  list.reserve(sound.size());
  for (const rocksdb::BackupInfo& info : sound) list.push_back(ToBackupInfo(info));
  std::vector<rocksdb::BackupID> damaged;
  engine_->GetCorruptedBackups(&damaged);
  for (const rocksdb::BackupID id : damaged) {
    BackupInfo info;
    info.id = id;
    info.damaged = true;
    list.push_back(info);
  }
  std::sort(list.begin(), list.end(), [](const BackupInfo& a, const BackupInfo& b) { return a.id < b.id; });
  return list;
}

absl::StatusOr<BackupInfo> BackupFolder::Find(int64_t id) const {
  const std::vector<BackupInfo> list = List();
  if (list.empty()) return NoBackups(path_);
  const auto found = id == 0 ? std::prev(list.end())
                             : std::find_if(list.begin(), list.end(), [&](const BackupInfo& b) { return b.id == id; });
  if (found == list.end()) return absl::NotFoundError(absl::StrCat("no backup ", id, " at ", path_));
  if (!found->damaged) return *found;
  return absl::DataLossError(absl::StrCat("backup ", found->id, " at ", path_, " has lost a file"));
}

absl::StatusOr<std::shared_ptr<const StoreFolder>> LockBackupFolder(const std::string& path) {
  if (path.empty()) return absl::InvalidArgumentError("folder: expected a folder for backups, got an empty string");
  std::error_code error;
  fs::create_directories(path, error);
  if (error) return FromErrno(error.value(), absl::StrCat("create the folder ", path));
  absl::StatusOr<std::shared_ptr<const StoreFolder>> folder = StoreFolder::Open(path, /*lock=*/true);
  if (absl::IsFailedPrecondition(folder.status())) {
    return absl::FailedPreconditionError(absl::StrCat("another backup is written to ", path));
  }
  MNEME_RETURN_IF_ERROR(folder.status());
  for (fs::directory_iterator it((*folder)->io_path(), error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (std::find(std::begin(kOwnEntries), std::end(kOwnEntries), name) != std::end(kOwnEntries)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("folder: expected an empty folder or one of backups, got ", path, " with a file ", name));
  }
  if (error) return FromErrno(error.value(), absl::StrCat("read the folder ", path));
  return folder;
}

absl::StatusOr<std::vector<BackupInfo>> ListBackups(const std::string& folder) {
  return Guarded("list backups", [&]() -> absl::StatusOr<std::vector<BackupInfo>> {
    MNEME_ASSIGN_OR_RETURN(const std::unique_ptr<BackupFolder> backups, BackupFolder::Open(folder));
    return backups->List();
  });
}

absl::Status VerifyBackup(const std::string& folder, int64_t id, const BackupProgress& progress) {
  return Guarded("verify backup", [&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::unique_ptr<BackupFolder> backups, BackupFolder::Open(folder));
    MNEME_ASSIGN_OR_RETURN(const BackupInfo info, backups->Find(id));
    backups->meter().SetTotal(static_cast<uint64_t>(info.bytes));
    return RunMetered("verify backup", backups->meter(), progress, [&] {
      return FromRocksRead(
          backups->engine().VerifyBackup(static_cast<rocksdb::BackupID>(info.id), /*verify_with_checksum=*/true),
          absl::StrCat("verify backup ", info.id));
    });
  });
}

}  // namespace mneme
