// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_ATTEND_H_
#define MNEME_MEMORY_ATTEND_ATTEND_H_

#include <cstdint>

#include "absl/status/status.h"

#include "base/parallel.h"
#include "memory/attend/device_graph.h"
#include "memory/attend/request.h"
#include "memory/device/staged_tensors.h"

namespace mneme {

// What serves a call. README.md of this folder shows the way of a call through its files.
enum class Backend : uint8_t {
  kHost,          // search, local attention and fusion on the CPU
  kDeviceSearch,  // search and attention over retrieved rows on the device, the rest on the CPU
  kDeviceFused,   // all on the device
  kGraph,         // all on the device, captured into a CUDA graph for replays
};

// Where the tensors of a call lie.
struct CallTensors {
  StagedTensors* staged = nullptr;  // those that lie on the device, borrowed; null: all lie in host memory
  bool all_on_device = false;
  DeviceGraph* graph = nullptr;  // the stream is being captured into this graph; then all tensors lie on the device
  bool memory_query_is_query = false;  // the request's memory_query is a copy of its query tensor
};

// Returns: the best backend that supports the request. With kDeviceSearch some sequences may still fall back to the
// CPU, and with kDeviceFused the call, for want of room on the device.
Backend ChooseBackend(const AttendRequest& request, const CallTensors& tensors);

// Attention over retrieved and local rows. Results do not depend on the executor; those of backends differ in the
// rounding of sums. Replaces tensors of `request` that lie on the device by copies where the host has to read them.
// Requires: the caller has checked shapes, offsets and the heads' rules.
// Errors: those of AttendOnHost, CheckQueries and DeviceGraph::Capture; Unavailable if the device failed. With
// AttendRequest::statuses a sequence that CheckQueries refuses fails alone. kDeviceFused and kGraph do not check
// queries: NaN gives NaN.
absl::Status Attend(AttendRequest& request, const CallTensors& tensors, Executor& executor);
// The same for tensors in host memory.
inline absl::Status Attend(AttendRequest& request, Executor& executor) {
  return Attend(request, CallTensors(), executor);
}

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_ATTEND_H_
