// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_ATTEND_H_
#define MNEME_MEMORY_ATTEND_ATTEND_H_

#include "absl/status/status.h"

#include "base/parallel.h"
#include "memory/attend/request.h"

namespace mneme {

// Attention over retrieved and local rows. The caller has checked the arguments. Results do not depend on the executor.
// Errors: see AttendOnHost.
absl::Status Attend(const AttendRequest& request, Executor& executor);

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_ATTEND_H_
