// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_STATUS_H_
#define MNEME_BASE_STATUS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Errors inside mneme are absl::Status; capi/ turns them into mneme_status at the boundary.
// Codes used, and whose fault they mean:
//   InvalidArgument, NotFound, AlreadyExists, FailedPrecondition, OutOfRange, Unimplemented   the caller
//   ResourceExhausted, Aborted (busy), Unavailable, Cancelled                                transient
//   DataLoss                                                                                damaged data
//   Internal, Unknown                                                                       mneme or a library

#define MNEME_RETURN_IF_ERROR(expression)          \
  do {                                             \
    ::absl::Status mneme_status_ = (expression);   \
    if (!mneme_status_.ok()) return mneme_status_; \
  } while (false)

#define MNEME_CONCAT_INNER_(a, b) a##b
#define MNEME_CONCAT_(a, b) MNEME_CONCAT_INNER_(a, b)

// MNEME_ASSIGN_OR_RETURN(auto value, MakeValue());
#define MNEME_ASSIGN_OR_RETURN(lhs, expression) \
  MNEME_ASSIGN_OR_RETURN_IMPL_(MNEME_CONCAT_(mneme_status_or_, __LINE__), lhs, expression)
#define MNEME_ASSIGN_OR_RETURN_IMPL_(result, lhs, expression) \
  auto result = (expression);                                 \
  if (!result.ok()) return std::move(result).status();        \
  lhs = std::move(result).value()

#endif  // MNEME_BASE_STATUS_H_
