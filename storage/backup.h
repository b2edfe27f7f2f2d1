// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_STORAGE_BACKUP_H_
#define MNEME_STORAGE_BACKUP_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace mneme {

// Backups of a store in a folder of RocksDB's BackupEngine. Database::Backup makes them. A table or blob file that
// several backups need lies there once.

struct BackupInfo {
  int64_t id = 0;            // 1, 2, … in the order in which they were made
  int64_t unix_seconds = 0;  // when it was made
  int64_t bytes = 0;         // of its files, those included that it shares with other backups
  int64_t files = 0;
  int64_t copied_bytes = 0;  // written for it; known to Database::Backup alone
  bool damaged = false;      // a file of it is missing
};

// Bytes done and in all, on the calling thread; a false return cancels (Cancelled).
using BackupProgress = std::function<bool(uint64_t, uint64_t)>;

// Oldest first. Reads no file of theirs.
// Errors: NotFound where there is no folder of backups; as storage/errno_status.h.
absl::StatusOr<std::vector<BackupInfo>> ListBackups(const std::string& folder);

// Reads all of a backup (0: the newest) against its checksums.
// Errors: NotFound; DataLoss names a file.
absl::Status VerifyBackup(const std::string& folder, int64_t id, const BackupProgress& progress);

// Makes a backup (0: the newest) a store at `path`, all or nothing: files come into `path`.restoring, which is renamed
// when it is whole and can be opened. What a killed restore leaves there the next one deletes.
// Errors: NotFound; DataLoss; AlreadyExists unless `path` is missing or an empty folder; FailedPrecondition if a newer
// mneme made the store, or while another restore to `path` runs.
absl::Status RestoreBackup(const std::string& folder, int64_t id, const std::string& path,
                           const BackupProgress& progress);

}  // namespace mneme

#endif  // MNEME_STORAGE_BACKUP_H_
