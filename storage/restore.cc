// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "storage/backup.h"
#include "storage/backup_folder.h"
#include "storage/database.h"
#include "storage/errno_status.h"
#include "storage/rocks.h"

namespace mneme {
namespace {

namespace fs = std::filesystem;

// The absolute path of what is or will be at `path`, without symbolic links and without a slash at its end.
// Errors: AlreadyExists unless it is missing or an empty folder.
absl::StatusOr<fs::path> FindTarget(const std::string& path) {
  if (path.empty()) return absl::InvalidArgumentError("path: expected the path of a folder, got an empty string");
  std::error_code error;
  const fs::path target = fs::weakly_canonical(fs::absolute(path), error);
  if (error) return FromErrno(error.value(), absl::StrCat("find ", path));
  const bool exists = fs::exists(target, error);
  if (!error && (!exists || (fs::is_directory(target, error) && !error && fs::is_empty(target, error) && !error))) {
    return target.has_filename() ? target : target.parent_path();
  }
  if (error) return FromErrno(error.value(), absl::StrCat("read the folder ", path));
  return absl::AlreadyExistsError(absl::StrCat("path: expected a missing or an empty folder, got ", path));
}

// Makes what was written to a file or folder, and the names in a folder, durable.
absl::Status Sync(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const int failed = fd < 0 || ::fsync(fd) != 0 ? errno : 0;
  if (fd >= 0) ::close(fd);
  return failed == 0 ? absl::OkStatus() : FromErrno(failed, absl::StrCat("sync ", path));
}

absl::Status SyncAll(const fs::path& folder) {
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    MNEME_RETURN_IF_ERROR(Sync(it->path()));
  }
  if (error) return FromErrno(error.value(), absl::StrCat("read the folder ", folder.string()));
  return Sync(folder);
}

// Deletes the files that a restore has left in `staging`.
absl::Status RemoveFiles(const fs::path& staging) {
  std::error_code error;
  for (fs::directory_iterator it(staging, error), end; !error && it != end; it.increment(error)) {
    std::error_code failed;
    if (it->is_directory(failed) || !fs::remove(it->path(), failed)) {
      return absl::InvalidArgumentError(absl::StrCat("path: expected no ", staging.string(),
                                                     ", or one that a restore left, got one with ",
                                                     it->path().filename().string()));
    }
  }
  return error ? FromErrno(error.value(), absl::StrCat("empty the folder ", staging.string())) : absl::OkStatus();
}

absl::Status Fill(BackupFolder& backups, const BackupInfo& info, const fs::path& staging,
                  const BackupProgress& progress) {
  backups.meter().SetTotal(static_cast<uint64_t>(info.bytes));
  MNEME_RETURN_IF_ERROR(RunMetered("restore", backups.meter(), progress, [&] {
    return FromRocksRead(
        backups.engine().RestoreDBFromBackup(static_cast<rocksdb::BackupID>(info.id), staging, staging),
        absl::StrCat("restore backup ", info.id));
  }));
  MNEME_RETURN_IF_ERROR(SyncAll(staging));
  // Refuses what a newer mneme made, and what cannot be opened.
  DatabaseOptions options;
  options.mode = DatabaseOptions::Mode::kReadOnly;
  return Database::Open(staging, options).status();
}

}  // namespace

absl::Status RestoreBackup(const std::string& folder, int64_t id, const std::string& path,
                           const BackupProgress& progress) {
  return Guarded("restore", [&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(std::unique_ptr<BackupFolder> backups, BackupFolder::Open(folder));
    MNEME_ASSIGN_OR_RETURN(const BackupInfo info, backups->Find(id));
    MNEME_ASSIGN_OR_RETURN(const fs::path target, FindTarget(path));
    const fs::path staging = target.string() + ".restoring";
    std::error_code error;
    fs::create_directories(staging, error);
    if (error) return FromErrno(error.value(), absl::StrCat("create the folder ", staging.string()));
    absl::StatusOr<std::shared_ptr<const StoreFolder>> locked = StoreFolder::Open(staging, /*lock=*/true);
    if (absl::IsFailedPrecondition(locked.status())) {
      return absl::FailedPreconditionError(absl::StrCat("another restore to ", path, " is running"));
    }
    MNEME_RETURN_IF_ERROR(locked.status());
    MNEME_RETURN_IF_ERROR(RemoveFiles(staging));
    absl::Status status = Fill(*backups, info, staging, progress);
    // A rename replaces an empty folder, and fails on one that got files meanwhile.
    if (status.ok() && std::rename(staging.c_str(), target.c_str()) != 0) {
      status = FromErrno(errno, absl::StrCat("rename ", staging.string(), " to ", path));
    }
    if (status.ok()) return Sync(target.parent_path());
    // RocksDB's thread may still be about to make files of a restore that has failed.
    backups->meter().Stop();
    backups.reset();
    RemoveFiles(staging).IgnoreError();
    fs::remove(staging, error);
    return status;
  });
}

}  // namespace mneme
