// SPDX-License-Identifier: Apache-2.0
#include "capi/src/boundary.h"

#include <utility>

namespace mneme::capi {
namespace {

// The library's only state beside the registry of handles.
thread_local std::string last_error;
thread_local const char* fixed_error = nullptr;  // a message that takes no memory, instead of the other

// The codes have the same numbers; one that mneme.h leaves out is never made, so it would be a bug.
mneme_status NumberOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kUnauthenticated: return MNEME_STATUS_INTERNAL;
    default: return static_cast<mneme_status>(code);
  }
}

}  // namespace

mneme_status Report(const absl::Status& status) {
  fixed_error = nullptr;
  last_error.assign(status.message().data(), status.message().size());
  return NumberOf(status.code());
}

mneme_status ReportOutOfMemory() {
  fixed_error = "out of memory";
  return MNEME_STATUS_RESOURCE_EXHAUSTED;
}

mneme_status ReportForkedChild() {
  fixed_error =
      "this process was made by fork() after a store had been opened: it can use no store, not even a new one. "
      "Use the parent's, fork before the first mneme_store_open, or start the child by exec";
  return MNEME_STATUS_FAILED_PRECONDITION;
}

absl::Status NullArgument(absl::string_view name) {
  return absl::InvalidArgumentError(absl::StrCat(name, ": expected a pointer, got NULL"));
}

}  // namespace mneme::capi

extern "C" {

const char* mneme_last_error(void) {
  return mneme::capi::fixed_error != nullptr ? mneme::capi::fixed_error : mneme::capi::last_error.c_str();
}

const char* mneme_status_name(mneme_status status) {
  switch (status) {
    case MNEME_OK: return "OK";
    case MNEME_STATUS_CANCELLED: return "CANCELLED";
    case MNEME_STATUS_INVALID_ARGUMENT: return "INVALID_ARGUMENT";
    case MNEME_STATUS_NOT_FOUND: return "NOT_FOUND";
    case MNEME_STATUS_ALREADY_EXISTS: return "ALREADY_EXISTS";
    case MNEME_STATUS_PERMISSION_DENIED: return "PERMISSION_DENIED";
    case MNEME_STATUS_RESOURCE_EXHAUSTED: return "RESOURCE_EXHAUSTED";
    case MNEME_STATUS_FAILED_PRECONDITION: return "FAILED_PRECONDITION";
    case MNEME_STATUS_ABORTED: return "ABORTED";
    case MNEME_STATUS_OUT_OF_RANGE: return "OUT_OF_RANGE";
    case MNEME_STATUS_UNIMPLEMENTED: return "UNIMPLEMENTED";
    case MNEME_STATUS_INTERNAL: return "INTERNAL";
    case MNEME_STATUS_UNAVAILABLE: return "UNAVAILABLE";
    case MNEME_STATUS_DATA_LOSS: return "DATA_LOSS";
  }
  return "?";
}

mneme_class mneme_status_classify(mneme_status status) {
  switch (status) {
    case MNEME_OK: return MNEME_CLASS_OK;
    case MNEME_STATUS_INVALID_ARGUMENT:
    case MNEME_STATUS_NOT_FOUND:
    case MNEME_STATUS_ALREADY_EXISTS:
    case MNEME_STATUS_PERMISSION_DENIED:
    case MNEME_STATUS_FAILED_PRECONDITION:
    case MNEME_STATUS_OUT_OF_RANGE:
    case MNEME_STATUS_UNIMPLEMENTED: return MNEME_CLASS_CALLER;
    case MNEME_STATUS_CANCELLED:
    case MNEME_STATUS_RESOURCE_EXHAUSTED:
    case MNEME_STATUS_ABORTED:
    case MNEME_STATUS_UNAVAILABLE: return MNEME_CLASS_TRANSIENT;
    case MNEME_STATUS_DATA_LOSS: return MNEME_CLASS_DATA;
    case MNEME_STATUS_INTERNAL: return MNEME_CLASS_INTERNAL;
  }
  return MNEME_CLASS_INTERNAL;
}

}  // extern "C"
