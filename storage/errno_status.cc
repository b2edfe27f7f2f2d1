// SPDX-License-Identifier: Apache-2.0
#include "storage/errno_status.h"

#include <string.h>

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <string>

#include "absl/strings/str_cat.h"

namespace mneme {
namespace {

struct Row {
  int error;
  absl::StatusCode code;
  const char* advice;
};

using Code = absl::StatusCode;

constexpr char kNoRight[] = "give this user the right to it, or open the store for reading only";
constexpr char kReadOnlyMedium[] = "open the store for reading only, or mount the file system for writing";
constexpr char kNoSpace[] = "free some room and call again";
constexpr char kTooManyFiles[] = "close some files or raise the limit (ulimit -n), and call again";
constexpr char kBadPath[] = "give another path";
constexpr char kDevice[] = "look at the device and the system's log";
constexpr char kNotAble[] = "use a file system that can do this";

constexpr Row kTable[] = {
    {EACCES, Code::kPermissionDenied, kNoRight},
    {EPERM, Code::kPermissionDenied, kNoRight},
    {EROFS, Code::kPermissionDenied, kReadOnlyMedium},
    {ENOKEY, Code::kPermissionDenied, "unlock the encrypted folder"},
    {EKEYEXPIRED, Code::kPermissionDenied, "unlock the encrypted folder"},
    {ENOSPC, Code::kResourceExhausted, kNoSpace},
    {EDQUOT, Code::kResourceExhausted, kNoSpace},
    {EFBIG, Code::kResourceExhausted, "raise the limit on the size of a file (ulimit -f)"},
    {EMFILE, Code::kResourceExhausted, kTooManyFiles},
    {ENFILE, Code::kResourceExhausted, kTooManyFiles},
    {ENOMEM, Code::kResourceExhausted, "free some memory and call again"},
    {ENOBUFS, Code::kResourceExhausted, "free some memory and call again"},
    {ENOLCK, Code::kResourceExhausted, "use a file system with locks, or free some"},
    {EMLINK, Code::kResourceExhausted, kNoSpace},
    {ENAMETOOLONG, Code::kInvalidArgument, "give a shorter path"},
    {ELOOP, Code::kInvalidArgument, kBadPath},
    {ENOTDIR, Code::kInvalidArgument, kBadPath},
    {EISDIR, Code::kInvalidArgument, kBadPath},
    {EILSEQ, Code::kInvalidArgument, kBadPath},
    {EXDEV, Code::kInvalidArgument, kBadPath},
    {ENOENT, Code::kNotFound, ""},
    {EEXIST, Code::kAlreadyExists, ""},
    {ENOTEMPTY, Code::kAlreadyExists, ""},
    {ENOSYS, Code::kUnimplemented, kNotAble},
    {EOPNOTSUPP, Code::kUnimplemented, kNotAble},
    {EUCLEAN, Code::kDataLoss, "repair the file system"},
    {EBADMSG, Code::kDataLoss, "repair the file system"},
    {EBADF, Code::kInternal, ""},
    {EFAULT, Code::kInternal, ""},
    {EINVAL, Code::kInternal, ""},
    {EIO, Code::kUnavailable, kDevice},
    {ENODEV, Code::kUnavailable, kDevice},
    {ENXIO, Code::kUnavailable, kDevice},
    {EREMOTEIO, Code::kUnavailable, kDevice},
    {ESTALE, Code::kUnavailable, "open the store again"},
    {ESHUTDOWN, Code::kUnavailable, kDevice},
    {ETIMEDOUT, Code::kUnavailable, ""},
    {EHOSTDOWN, Code::kUnavailable, ""},
    {EAGAIN, Code::kUnavailable, ""},
    {EBUSY, Code::kUnavailable, ""},
    {ETXTBSY, Code::kUnavailable, ""},
    {EINTR, Code::kUnavailable, ""},
};

const Row* Find(int error) {
  const Row* const row =
      std::find_if(std::begin(kTable), std::end(kTable), [error](const Row& r) { return r.error == error; });
  return row == std::end(kTable) ? nullptr : row;
}

// In the language of the process's locale, as RocksDB's messages.
std::string Text(int error) {
  char buffer[256];
#if defined(_GNU_SOURCE)
  return strerror_r(error, buffer, sizeof(buffer));
#else
  return strerror_r(error, buffer, sizeof(buffer)) == 0 ? buffer : "";
#endif
}

// In English.
std::string EnglishText(int error) {
#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 32)
  const char* const text = strerrordesc_np(error);
  return text == nullptr ? "" : text;
#else
  return Text(error);
#endif
}

}  // namespace

absl::StatusCode CodeOfErrno(int error) {
  const Row* const row = Find(error);
  return row == nullptr ? Code::kUnavailable : row->code;
}

absl::string_view AdviceOnErrno(int error) {
  const Row* const row = Find(error);
  return row == nullptr ? "" : row->advice;
}

absl::Status FromErrno(int error, absl::string_view doing) {
  const absl::string_view advice = AdviceOnErrno(error);
  return absl::Status(CodeOfErrno(error), absl::StrCat(doing, ": ", Text(error), advice.empty() ? "" : "; ", advice));
}

int ErrnoOfText(absl::string_view text) {
  int found = 0;
  size_t last = 0;
  size_t length = 0;
  for (const Row& row : kTable) {
    for (const std::string& message : {Text(row.error), EnglishText(row.error)}) {
      if (message.empty()) continue;
      const size_t at = text.rfind(absl::StrCat(": ", message));
      if (at == absl::string_view::npos) continue;
      // One message may begin another.
      if (found != 0 && (at < last || (at == last && message.size() <= length))) continue;
      found = row.error;
      last = at;
      length = message.size();
    }
  }
  return found;
}

}  // namespace mneme
