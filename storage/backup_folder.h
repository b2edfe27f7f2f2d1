// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_STORAGE_BACKUP_FOLDER_H_
#define MNEME_STORAGE_BACKUP_FOLDER_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "rocksdb/utilities/backup_engine.h"

#include "storage/backup.h"
#include "storage/read_meter.h"
#include "storage/store_folder.h"

namespace mneme {

// An open folder of backups, for reading.
class BackupFolder {
 public:
  static absl::StatusOr<std::unique_ptr<BackupFolder>> Open(const std::string& path);

  std::vector<BackupInfo> List() const;
  // `id` 0: the newest. Errors: NotFound, DataLoss if it is damaged.
  absl::StatusOr<BackupInfo> Find(int64_t id) const;

  const rocksdb::BackupEngineReadOnly& engine() const { return *engine_; }
  ReadMeter& meter() { return *meter_; }

 private:
  BackupFolder() = default;

  std::string path_;  // as given, for messages
  std::shared_ptr<const StoreFolder> folder_;
  const std::shared_ptr<ReadMeter> meter_ = std::make_shared<ReadMeter>();
  std::shared_ptr<rocksdb::Env> env_;  // outlives engine_
  std::unique_ptr<rocksdb::BackupEngineReadOnly> engine_;
};

BackupInfo ToBackupInfo(const rocksdb::BackupInfo& info);

// Opens a folder that backups are written to, and locks it. Missing folders are made, with their parents.
// Errors: InvalidArgument for a folder with other files; FailedPrecondition while another backup goes there.
absl::StatusOr<std::shared_ptr<const StoreFolder>> LockBackupFolder(const std::string& path);

}  // namespace mneme

#endif  // MNEME_STORAGE_BACKUP_FOLDER_H_
