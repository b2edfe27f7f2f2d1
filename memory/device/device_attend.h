// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_DEVICE_DEVICE_ATTEND_H_
#define MNEME_MEMORY_DEVICE_DEVICE_ATTEND_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/types/span.h"

#include "index/top_k.h"
#include "memory/attend/request.h"
#include "memory/attend/retrieved_states.h"
#include "memory/device/mirror.h"

namespace mneme {

// Searches and attends to the memories of the request's sequences on their store's device, as far as it can serve them,
// and waits for the answers: one a sequence. Those that it cannot serve, or where anything went wrong, are not there;
// what the CPU makes of them is the same but for the rounding of sums.
//
// Served are memories without an index of a kind of their own, of f16, bf16 or i8 rows of 64, 128 or 256 dims, by
// queries of the rows' type (f16 or bf16 where they are i8) as they are (kAsStored, not normalised), at most 256 rows a
// head; of these what the budget has room for.
std::vector<std::optional<RetrievedStates>> AttendOnDevice(const AttendRequest& request);

}  // namespace mneme

#endif  // MNEME_MEMORY_DEVICE_DEVICE_ATTEND_H_
