// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/attend.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "memory/attend/host_attend.h"
#include "memory/device/device_attend.h"
#include "memory/store.h"

namespace mneme {

absl::Status Attend(const AttendRequest& request, Executor& executor) {
  const absl::Span<const Sequence> sequences = request.retrieve.sequences;
  std::vector<std::optional<RetrievedStates>> device_states;
  if (std::any_of(sequences.begin(), sequences.end(), [](const Sequence& sequence) {
        return sequence.memory != nullptr && sequence.memory->store().device() != nullptr;
      })) {
    device_states = AttendOnDevice(request);
  }
  return AttendOnHost(request, device_states, executor);
}

}  // namespace mneme
