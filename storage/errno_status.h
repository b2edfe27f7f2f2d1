// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_STORAGE_ERRNO_STATUS_H_
#define MNEME_STORAGE_ERRNO_STATUS_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace mneme {

// The one table from the operating system's errors to mneme's statuses (docs/errors.md). Everything that touches files
// uses it.

// Returns: the code for errno value `error`. A value that the table does not have is kUnavailable.
// ENOENT is kNotFound: callers that know that a file must exist report kDataLoss instead.
absl::StatusCode CodeOfErrno(int error);

// Returns: what the caller can do about `error`, as half a sentence; empty where there is nothing to advise.
absl::string_view AdviceOnErrno(int error);

// Returns: "DOING: strerror(error); ADVICE" with the code of `error`. `doing` names the path.
// Requires: error != 0.
absl::Status FromErrno(int error, absl::string_view doing);

// Returns: the errno value whose message stands last in `text` behind ": ", or 0 if there is none. RocksDB reports a
// failed system call by strerror's text alone.
int ErrnoOfText(absl::string_view text);

}  // namespace mneme

#endif  // MNEME_STORAGE_ERRNO_STATUS_H_
