// SPDX-License-Identifier: Apache-2.0
#include "storage/backup.h"

#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "capi/src/boundary.h"
#include "capi/src/handles.h"
#include "capi/src/host_progress.h"
#include "capi/src/structs.h"

namespace mneme::capi {
namespace {

absl::Status ExpectBackupNumber(absl::string_view name, int64_t value) {
  if (value >= 0 && value <= std::numeric_limits<int32_t>::max()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ": expected 0 to 2147483647, got ", value));
}

mneme_backup_info ToHost(const BackupInfo& backup) {
  mneme_backup_info info = MNEME_BACKUP_INFO_INIT;
  info.id = backup.id;
  info.unix_seconds = backup.unix_seconds;
  info.bytes = backup.bytes;
  info.files = backup.files;
  info.copied_bytes = backup.copied_bytes;
  info.damaged = backup.damaged ? 1 : 0;
  return info;
}

}  // namespace
}  // namespace mneme::capi

extern "C" {

using namespace mneme;        // NOLINT: the entry points only
using namespace mneme::capi;  // NOLINT

mneme_status mneme_store_backup(mneme_store* store, const mneme_store_backup_args* args, mneme_backup_info* info) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<StoreObject> object, FindHandle<StoreObject>("store", store));
    MNEME_ASSIGN_OR_RETURN(const mneme_store_backup_args given, ReadStruct("args", args));
    if (given.folder == nullptr) return NullArgument("args.folder");
    MNEME_RETURN_IF_ERROR(ExpectBackupNumber("args.keep", given.keep));
    if (info != nullptr) MNEME_RETURN_IF_ERROR(CheckStructSize("info", info->struct_size));
    MNEME_ASSIGN_OR_RETURN(const BackupInfo made, object->store->Backup(given.folder, given.keep,
                                                                        WrapProgress(given.progress, given.context)));
    return info == nullptr ? absl::OkStatus() : WriteStruct("info", ToHost(made), info);
  });
}

mneme_status mneme_store_restore(const mneme_store_restore_args* args) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const mneme_store_restore_args given, ReadStruct("args", args));
    if (given.folder == nullptr) return NullArgument("args.folder");
    if (given.path == nullptr) return NullArgument("args.path");
    MNEME_RETURN_IF_ERROR(ExpectBackupNumber("args.backup", given.backup));
    return RestoreBackup(given.folder, given.backup, given.path, WrapProgress(given.progress, given.context));
  });
}

mneme_status mneme_backup_list(const char* folder, mneme_backup_visitor_fn visitor, void* context) {
  return Guard([&]() -> absl::Status {
    if (folder == nullptr) return NullArgument("folder");
    if (visitor == nullptr) return NullArgument("visitor");
    MNEME_ASSIGN_OR_RETURN(const std::vector<BackupInfo> backups, ListBackups(folder));
    for (const BackupInfo& backup : backups) {
      const mneme_backup_info info = ToHost(backup);
      const HostFloatingPointScope environment;
      if (visitor(context, &info) != 0) break;
    }
    return absl::OkStatus();
  });
}

mneme_status mneme_backup_verify(const char* folder, int64_t backup, mneme_progress_fn progress, void* context) {
  return Guard([&]() -> absl::Status {
    if (folder == nullptr) return NullArgument("folder");
    MNEME_RETURN_IF_ERROR(ExpectBackupNumber("backup", backup));
    return VerifyBackup(folder, backup, WrapProgress(progress, context));
  });
}

}  // extern "C"
