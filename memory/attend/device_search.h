// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_DEVICE_SEARCH_H_
#define MNEME_MEMORY_ATTEND_DEVICE_SEARCH_H_

#include <optional>
#include <vector>

#include "memory/attend/request.h"
#include "memory/attend/retrieved_states.h"

namespace mneme {

// Searches the memories of the request's sequences on their store's device and attends to the retrieved rows there.
// The queries lie in host memory. Waits for the results.
// Returns: [sequences]; none for a sequence without visible rows, and for one that the CPU has to search: the device
// does not support it (CheckDeviceSupport, LaunchMemories), has no room for its rows, or has failed. The CPU's results
// differ in the rounding of sums alone.
std::vector<std::optional<RetrievedStates>> SearchOnDevice(const AttendRequest& request);

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_DEVICE_SEARCH_H_
