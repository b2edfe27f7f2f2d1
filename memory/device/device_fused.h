// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_DEVICE_DEVICE_FUSED_H_
#define MNEME_MEMORY_DEVICE_DEVICE_FUSED_H_

#include "absl/status/statusor.h"

#include "memory/attend/request.h"
#include "memory/device/device.h"

namespace mneme {

// The whole of Attend in two launches, for a request whose tensors all lie on `device`: search, local attention and
// fusion, queued on `stream`. The host waits only where the request has outputs in host memory, or without has_stream
// (then a stream of the engine's own is used, and what fills the tensors must be done already). False if it is not one
// that the kernels know or not all of its rows can be on the device: nothing was done then. Queries are not looked at:
// NaN in one gives NaN for it.
//
// Known are, beside what AttendOnDevice says of memories, queries and local rows of one type, f16 or bf16; contiguous
// queries and outputs; local rows aligned to 16 bytes with strides of multiples of eight elements; masks none, causal
// and sliding window with the queries the newest local rows; no memory_mass where fusion is gated; at most 2^18
// candidates (queries * heads * top_k).
absl::StatusOr<bool> AttendWholly(const AttendRequest& request, Device& device, bool has_stream, void* stream);

}  // namespace mneme

#endif  // MNEME_MEMORY_DEVICE_DEVICE_FUSED_H_
