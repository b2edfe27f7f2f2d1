// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_CAPI_SRC_BOUNDARY_H_
#define MNEME_CAPI_SRC_BOUNDARY_H_

#include <exception>
#include <new>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

#include "base/floating_point.h"
#include "base/fork_watch.h"
#include "mneme.h"

namespace mneme::capi {

// Stores the message of a failed call for mneme_last_error of this thread and gives its number.
mneme_status Report(const absl::Status& status);

// The message was too much for the memory that is left.
mneme_status ReportOutOfMemory();

// Before anything is locked: in a forked child another thread of the parent may hold any mutex.
mneme_status ReportForkedChild();

// The one way from inside to outside: every entry point that can fail runs its body in here, so no exception crosses
// the boundary, every failure leaves a message, and the host's floating-point environment is as before.
template <typename Body>
mneme_status Guard(const Body& body) noexcept {
  if (IsForkedChild()) return ReportForkedChild();
  const FloatingPointScope default_environment;
  try {
    const absl::Status status = body();
    return status.ok() ? MNEME_OK : Report(status);
  } catch (const std::bad_alloc&) {
    return ReportOutOfMemory();
  } catch (const std::exception& error) {
    try {
      return Report(absl::InternalError(absl::StrCat("unexpected exception: ", error.what())));
    } catch (...) {
      return ReportOutOfMemory();
    }
  } catch (...) {
    try {
      return Report(absl::InternalError("unexpected exception of unknown type"));
    } catch (...) {
      return ReportOutOfMemory();
    }
  }
}

absl::Status NullArgument(absl::string_view name);

}  // namespace mneme::capi

#endif  // MNEME_CAPI_SRC_BOUNDARY_H_
