// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_TEMPORARY_FOLDER_H_
#define MNEME_BASE_TEMPORARY_FOLDER_H_

#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <string>
#include <system_error>

namespace mneme {

// A new folder, removed at the end with all that is in it. A process that is killed leaves its folder; the next
// TemporaryFolder in the same place removes it.
//
// On disk: mneme-XXXXXX/lock, locked by flock while the owner lives, and mneme-XXXXXX/data, which the owner fills. The
// kernel drops the lock when the owner dies, so a folder whose lock can be taken has no owner. For programs, benchmarks
// and tests; header-only, as programs link libmneme alone.
class TemporaryFolder {
 public:
  // Errors: throws std::system_error.
  explicit TemporaryFolder(const std::filesystem::path& place = std::filesystem::temp_directory_path()) {
    RemoveAbandoned(place);
    folder_ = (place / kTemplate).string();
    if (mkdtemp(folder_.data()) == nullptr) Fail("cannot make a folder " + folder_);
    // The lock gets its name only once it is held: RemoveAbandoned never sees a living owner's lock free.
    const std::string unnamed = folder_ + "/lock.new";
    lock_ = open(unnamed.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (lock_ < 0 || flock(lock_, LOCK_EX | LOCK_NB) != 0 || rename(unnamed.c_str(), LockOf(folder_).c_str()) != 0 ||
        mkdir(DataOf(folder_).c_str(), 0700) != 0) {
      const int error = errno;
      if (lock_ >= 0) close(lock_);
      unlink(unnamed.c_str());
      Remove(folder_);
      errno = error;
      Fail("cannot make a folder in " + folder_);
    }
    path_ = DataOf(folder_);
  }
  ~TemporaryFolder() {
    Remove(folder_);
    close(lock_);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  // An empty folder at first.
  const std::string& path() const { return path_; }

  // Removes the folders in `place` that this user's dead processes left. Skips everything else, links included, and
  // what cannot be read.
  static void RemoveAbandoned(const std::filesystem::path& place) {
    std::error_code error;
    std::filesystem::directory_iterator entries(place, error);
    for (; !error && entries != std::filesystem::directory_iterator(); entries.increment(error)) {
      if (IsOurName(entries->path().filename().string())) RemoveIfAbandoned(entries->path().string());
    }
  }

 private:
  static constexpr char kTemplate[] = "mneme-XXXXXX";

  static std::string LockOf(const std::string& folder) { return folder + "/lock"; }
  static std::string DataOf(const std::string& folder) { return folder + "/data"; }
  [[noreturn]] static void Fail(const std::string& what) {
    throw std::system_error(errno, std::generic_category(), what);
  }

  static bool IsOurName(const std::string& name) {
    const std::string pattern = kTemplate;
    const size_t prefix = pattern.find('X');
    return name.size() == pattern.size() && name.compare(0, prefix, pattern, 0, prefix) == 0 &&
           name.find_first_of("-.", prefix) == std::string::npos;
  }

  static void RemoveIfAbandoned(const std::string& folder) {
    const int directory = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (directory < 0) return;
    const int lock = openat(directory, "lock", O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    struct stat info;
    const bool ours = lock >= 0 && fstat(directory, &info) == 0 && info.st_uid == geteuid() &&
                      (info.st_mode & 0777) == 0700 && fstat(lock, &info) == 0 && info.st_uid == geteuid() &&
                      S_ISREG(info.st_mode) && info.st_size == 0;
    // st_nlink is 0 if another process removed the folder before the lock was taken here.
    if (ours && flock(lock, LOCK_EX | LOCK_NB) == 0 && fstat(lock, &info) == 0 && info.st_nlink == 1) Remove(folder);
    if (lock >= 0) close(lock);
    close(directory);
  }

  // The lock goes last: a removal that is cut short is finished by the next RemoveAbandoned. Requires: the lock is
  // held.
  static void Remove(const std::string& folder) {
    std::error_code ignored;
    std::filesystem::remove_all(DataOf(folder), ignored);
    if (ignored) return;
    unlink(LockOf(folder).c_str());
    rmdir(folder.c_str());
  }

  std::string folder_;
  std::string path_;
  int lock_ = -1;
};

}  // namespace mneme

#endif  // MNEME_BASE_TEMPORARY_FOLDER_H_
