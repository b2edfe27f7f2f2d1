// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_STORAGE_STORE_FOLDER_H_
#define MNEME_STORAGE_STORE_FOLDER_H_

#include <sys/types.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace mneme {

// The folder of an open store: one directory of one file system, whatever it is called. A path is resolved once, when
// the store is opened; later changes of the working directory, of a symlink or of a parent's name do not matter.
//
// A writer's folder is locked by flock() on the directory itself. That lock belongs to the open directory, so it
// outlives every other open and close of files in the folder, and it is found under every name of the folder: with a
// slash at the end, by a symlink, by a bind mount. It ends with the process. Network file systems may not honour it
// between machines.
//
// Thread-safe.
class StoreFolder {
 public:
  // Errors: NotFound, InvalidArgument (not a folder), PermissionDenied, Unavailable; FailedPrecondition if `lock` and
  // another StoreFolder, of this process or another one, has the lock.
  static absl::StatusOr<std::shared_ptr<const StoreFolder>> Open(const std::string& path, bool lock);
  ~StoreFolder();
  StoreFolder(const StoreFolder&) = delete;
  StoreFolder& operator=(const StoreFolder&) = delete;

  // The absolute path when the store was opened, without symlinks: for messages.
  const std::string& path() const { return path_; }
  // A path that leads to this directory and no other one: what files are opened by. Without /proc that is path().
  const std::string& io_path() const { return io_path_; }

  // FailedPrecondition if the folder was deleted, or cannot be reached any more: what is written now would be lost.
  absl::Status Check() const;

 private:
  StoreFolder(std::string path, int fd, dev_t device, ino_t inode, bool locked);

  const std::string path_;
  const int fd_;
  const dev_t device_;
  const ino_t inode_;
  const bool locked_;
  std::string io_path_;
};

// `text` with the names that files of open folders have for a person: "/proc/self/fd/7/000012.sst" becomes
// "/var/lib/chat/000012.sst", where the folder is now.
std::string WithRealPaths(absl::string_view text);

}  // namespace mneme

#endif  // MNEME_STORAGE_STORE_FOLDER_H_
