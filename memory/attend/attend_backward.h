// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_ATTEND_BACKWARD_H_
#define MNEME_MEMORY_ATTEND_ATTEND_BACKWARD_H_

#include "absl/status/status.h"

#include "base/parallel.h"
#include "memory/attend/backward_request.h"

namespace mneme {

// Writes the gradients, for tensors in host memory. The set of retrieved rows counts as constant, and rows of a memory
// have no gradient. Results do not depend on the executor; the gradients of a sequence's tensors do not depend on the
// other sequences. Requires: the caller has checked shapes, offsets and the heads' rules.
// Errors: those of CheckQueries and of ReportedRows::Read, for a sequence that has not failed. Then no output is
// written. Out of memory: see AttendOnHost.
absl::Status AttendBackward(const AttendBackwardRequest& request, Executor& executor);

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_ATTEND_BACKWARD_H_
