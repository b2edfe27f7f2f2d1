// SPDX-License-Identifier: Apache-2.0
#include "storage/store_folder.h"

#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

#include "base/fork_watch.h"
#include "base/status.h"
#include "storage/errno_status.h"

namespace mneme {
namespace {

constexpr absl::string_view kDescriptors = "/proc/self/fd/";

// Programs that clean temporary folders lock a directory for a moment to see whether it is in use.
constexpr int kLockAttempts = 20;
constexpr auto kLockPause = std::chrono::milliseconds(10);

absl::Status CannotOpen(const std::string& path, int error) {
  return FromErrno(error, absl::StrCat("cannot open the folder ", path));
}

absl::Status Lock(int fd, const std::string& path) {
  for (int attempt = 1;; ++attempt) {
    if (::flock(fd, LOCK_EX | LOCK_NB) == 0) return absl::OkStatus();
    if (errno == EINTR) continue;
    if (errno != EWOULDBLOCK) return CannotOpen(path, errno);
    if (attempt == kLockAttempts) {
      return absl::FailedPreconditionError(
          absl::StrCat("store is open by another writer: ", path, "; close it there, or open it for reading only"));
    }
    std::this_thread::sleep_for(kLockPause);
  }
}

// Closes it, and so gives back its lock, unless somebody else takes it.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const { return fd_; }
  void Release() { fd_ = -1; }

 private:
  int fd_;
};

bool IsDirectory(const std::string& path, dev_t device, ino_t inode) {
  struct stat info;
  return ::stat(path.c_str(), &info) == 0 && info.st_dev == device && info.st_ino == inode;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const StoreFolder>> StoreFolder::Open(const std::string& path, bool lock) {
  WatchForks();
  const std::unique_ptr<char, decltype(&::free)> resolved(::realpath(path.c_str(), nullptr), ::free);
  if (resolved == nullptr) return CannotOpen(path, errno);
  Descriptor fd(::open(resolved.get(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0) return CannotOpen(path, errno);
  struct stat info;
  if (::fstat(fd.get(), &info) != 0) return CannotOpen(path, errno);
  if (lock) MNEME_RETURN_IF_ERROR(Lock(fd.get(), path));
  std::unique_ptr<const StoreFolder> folder(new StoreFolder(resolved.get(), fd.get(), info.st_dev, info.st_ino, lock));
  fd.Release();
  return std::shared_ptr<const StoreFolder>(std::move(folder));
}

StoreFolder::StoreFolder(std::string path, int fd, dev_t device, ino_t inode, bool locked)
    : path_(std::move(path)), fd_(fd), device_(device), inode_(inode), locked_(locked) {
  io_path_ = absl::StrCat(kDescriptors, fd_);
  if (!IsDirectory(io_path_, device_, inode_)) io_path_ = path_;
  CloseInForkedChild(fd_);
}

StoreFolder::~StoreFolder() {
  // A forked child has closed it already, and the number may be another file's by now.
  if (IsForkedChild()) return;
  ForgetInForkedChild(fd_);
  // A child that was made by other means than fork() may still have the open directory, and the lock with it.
  if (locked_) ::flock(fd_, LOCK_UN);
  ::close(fd_);
}

absl::Status StoreFolder::Check() const {
  struct stat info;
  if (::fstat(fd_, &info) != 0 || info.st_nlink == 0) {
    return absl::FailedPreconditionError(absl::StrCat("the folder of the store was deleted while it is open: ", path_));
  }
  if (io_path_ != path_ || IsDirectory(path_, device_, inode_)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the folder of the store was moved or replaced while it is open: ", path_));
}

std::string WithRealPaths(absl::string_view text) {
  std::string result;
  for (size_t at; (at = text.find(kDescriptors)) != absl::string_view::npos;) {
    size_t end = at + kDescriptors.size();
    while (end < text.size() && absl::ascii_isdigit(static_cast<unsigned char>(text[end]))) ++end;
    const std::string link(text.substr(at, end - at));
    char path[PATH_MAX];
    const ssize_t size = ::readlink(link.c_str(), path, sizeof(path));
    absl::StrAppend(&result, text.substr(0, at),
                    size > 0 ? absl::string_view(path, static_cast<size_t>(size)) : absl::string_view(link));
    text.remove_prefix(end);
  }
  return absl::StrCat(result, text);
}

}  // namespace mneme
