// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_HOST_ATTEND_H_
#define MNEME_MEMORY_ATTEND_HOST_ATTEND_H_

#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

#include "base/parallel.h"
#include "memory/attend/request.h"
#include "memory/attend/retrieved_states.h"

namespace mneme {

// Attends on the CPU, for tensors in host memory. device_states: [sequences], what a device computed in place of the
// search; or empty. Results do not depend on the executor.
// Errors: DataLoss if rows that are needed are damaged. With AttendRequest::statuses the error goes there, only the
// damaged sequence fails, and its outputs are empty states; without, no output is written. A sequence that has failed
// before is not served, and its outputs are empty states, too.
// Out of memory: throws bad_alloc. Work items do not catch it: the executor carries it back to this thread
// (base/parallel.h), and the ABI's boundary makes it a status of the whole call. Some outputs may be written by then.
absl::Status AttendOnHost(const AttendRequest& request, absl::Span<const std::optional<RetrievedStates>> device_states,
                          Executor& executor);

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_HOST_ATTEND_H_
