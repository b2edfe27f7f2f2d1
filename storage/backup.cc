// SPDX-License-Identifier: Apache-2.0
#include "storage/backup.h"

#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "rocksdb/metadata.h"
#include "rocksdb/utilities/backup_engine.h"
#include "rocksdb/utilities/stackable_db.h"

#include "base/status.h"
#include "storage/backup_folder.h"
#include "storage/database_impl.h"

namespace mneme {
namespace {

// The store's database as BackupEngine sees it. RocksDB lists the table and blob files first and the write-ahead log
// second. Chunks bypass that log, so a commit between the two would be in the backup without its chunks.
class SourceDb final : public rocksdb::StackableDB {
 public:
  // `db` stays the caller's. No commit is written while `commit_mutex` is held alone.
  SourceDb(rocksdb::DB* db, std::shared_mutex& commit_mutex, ReadMeter& meter)
      : StackableDB(std::shared_ptr<rocksdb::DB>(db, [](rocksdb::DB*) {})),
        commit_mutex_(commit_mutex),
        meter_(meter) {}

  rocksdb::Status GetLiveFilesStorageInfo(const rocksdb::LiveFilesStorageInfoOptions& options,
                                          std::vector<rocksdb::LiveFileStorageInfo>* files) override {
    const std::lock_guard no_commit(commit_mutex_);
    const rocksdb::Status status = db_->GetLiveFilesStorageInfo(options, files);
    uint64_t total = 0;
    for (const rocksdb::LiveFileStorageInfo& file : *files) total += file.size;
    meter_.SetTotal(total);
    return status;
  }

 private:
  std::shared_mutex& commit_mutex_;
  ReadMeter& meter_;
};

// Whether `path`, of which the end may be missing, is `folder` or lies in it.
bool IsWithin(const std::string& folder, const std::string& path) {
  std::error_code error;
  const std::filesystem::path found = std::filesystem::weakly_canonical(std::filesystem::absolute(path, error), error);
  return !error && absl::StartsWith(found.string() + "/", folder + "/");
}

}  // namespace

absl::StatusOr<BackupInfo> DatabaseImpl::Backup(const std::string& folder, int64_t keep,
                                                const BackupProgress& progress) {
  return Guarded("back up", [&]() -> absl::StatusOr<BackupInfo> {
    std::shared_lock<std::shared_mutex> lock;
    MNEME_RETURN_IF_ERROR(LockForWrite(lock));
    if (IsWithin(folder_->path(), folder)) {
      return absl::InvalidArgumentError(absl::StrCat("folder: expected one outside of the store, got ", folder));
    }
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<const StoreFolder> target, LockBackupFolder(folder));
    const auto meter = std::make_shared<ReadMeter>();
    const std::shared_ptr<rocksdb::Env> env = MakeMeteredEnv(meter);
    rocksdb::BackupEngine* opened = nullptr;
    const rocksdb::BackupEngineOptions options(target->io_path(), env.get());
    MNEME_RETURN_IF_ERROR(FromRocks(rocksdb::BackupEngine::Open(options, env.get(), &opened), "open the backups"));
    const std::unique_ptr<rocksdb::BackupEngine> engine(opened);
    const std::lock_guard one(backup_mutex_);
    rocksdb::BackupID id = 0;
    SourceDb source(db(), commit_mutex_, *meter);
    {
      const std::lock_guard guard(backup_meter_mutex_);
      backup_meter_ = meter;
    }
    const absl::Status status = RunMetered("back up", *meter, progress, [&] {
      return FromRocks(engine->CreateNewBackup(rocksdb::CreateBackupOptions(), &source, &id), "back up");
    });
    {
      const std::lock_guard guard(backup_meter_mutex_);
      backup_meter_ = nullptr;
    }
    if (!status.ok() && write_failed_ && !absl::IsCancelled(status)) {
      return absl::UnavailableError("back up: a write of the store failed meanwhile; try again");
    }
    MNEME_RETURN_IF_ERROR(status);
    rocksdb::BackupInfo made;
    MNEME_RETURN_IF_ERROR(FromRocks(engine->GetBackupInfo(id, &made), "back up"));
    if (keep > 0) {
      MNEME_RETURN_IF_ERROR(FromRocks(engine->PurgeOldBackups(static_cast<uint32_t>(keep)), "delete old backups"));
    }
    BackupInfo info = ToBackupInfo(made);
    info.copied_bytes = static_cast<int64_t>(meter->written());
    return info;
  });
}

void DatabaseImpl::StopBackup() {
  const std::lock_guard guard(backup_meter_mutex_);
  if (backup_meter_ != nullptr) backup_meter_->Stop();
}

}  // namespace mneme
