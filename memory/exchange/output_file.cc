// SPDX-License-Identifier: Apache-2.0
#include "memory/exchange/output_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "absl/strings/str_cat.h"

#include "storage/errno_status.h"

namespace mneme {
namespace {

absl::Status ExistsError(const std::string& path) {
  return absl::AlreadyExistsError(absl::StrCat("path: ", path, " exists already"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<OutputFile>> OutputFile::Create(const std::string& path, bool overwrite) {
  struct stat existing = {};
  if (!overwrite && lstat(path.c_str(), &existing) == 0) return ExistsError(path);
  std::unique_ptr<OutputFile> file(new OutputFile(path, overwrite));
  file->fd_ = open(file->part_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
  if (file->fd_ < 0) return FromErrno(errno, absl::StrCat("cannot create ", file->part_));
  if (flock(file->fd_, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK)
      return absl::AbortedError(absl::StrCat(file->part_, " is being written by another export"));
    return FromErrno(errno, absl::StrCat("cannot lock ", file->part_));
  }
  file->owns_part_ = true;
  if (ftruncate(file->fd_, 0) != 0) return FromErrno(errno, absl::StrCat("cannot empty ", file->part_));
  return file;
}

OutputFile::~OutputFile() {
  if (owns_part_) unlink(part_.c_str());
  if (published_ && !kept_ && !overwrite_) unlink(path_.c_str());
  if (fd_ >= 0) close(fd_);
}

absl::Status OutputFile::WriteAt(uint64_t offset, const char* data, size_t size) {
  while (size > 0) {
    const ssize_t written = pwrite(fd_, data, size, static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return FromErrno(errno, absl::StrCat("cannot write ", part_));
    data += written;
    offset += static_cast<uint64_t>(written);
    size -= static_cast<size_t>(written);
  }
  return absl::OkStatus();
}

absl::Status OutputFile::Sync() {
  return fsync(fd_) == 0 ? absl::OkStatus() : FromErrno(errno, absl::StrCat("cannot sync ", part_));
}

absl::Status OutputFile::Publish() {
  const unsigned flags = overwrite_ ? 0 : RENAME_NOREPLACE;
  int result = renameat2(AT_FDCWD, part_.c_str(), AT_FDCWD, path_.c_str(), flags);
  // A file system that cannot refuse to replace a file: Create has looked that there is none.
  if (result != 0 && errno == EINVAL && flags != 0) result = rename(part_.c_str(), path_.c_str());
  if (result != 0 && errno == EEXIST) return ExistsError(path_);
  if (result != 0) return FromErrno(errno, absl::StrCat("cannot rename ", part_, " to ", path_));
  owns_part_ = false;
  published_ = true;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Folder>> Folder::OpenOf(const std::string& path) {
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  std::unique_ptr<Folder> folder(new Folder(parent.empty() ? std::string(1, '.') : parent.string()));
  folder->fd_ = open(folder->path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder->fd_ < 0) return FromErrno(errno, absl::StrCat("cannot open ", folder->path_));
  return folder;
}

Folder::~Folder() {
  if (fd_ >= 0) close(fd_);
}

absl::Status Folder::Sync() {
  return fsync(fd_) == 0 ? absl::OkStatus() : FromErrno(errno, absl::StrCat("cannot sync ", path_));
}

}  // namespace mneme
