// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_ATTEND_H_
#define MNEME_MEMORY_ATTEND_ATTEND_H_

#include <cstdint>

#include "absl/status/status.h"

#include "base/parallel.h"
#include "memory/attend/device_graph.h"
#include "memory/attend/request.h"
#include "memory/device/staged_tensors.h"

// The way of a call through this folder (docs/concepts.md explains the nouns). On the host: memory_view.h fixes what a
// sequence sees; memory_search.h lists the work items of a search (seeded_scan.h, index_search.h); tile_fusion.h
// attends to retrieved rows and fuses them with local attention (tile.h). interleaved_attend.h searches and fuses in
// one pass, host_attend.h otherwise in two. On the device: device_support.h says which calls the kernels support,
// device_problem.h makes their arguments, device_launch.h runs them, for device_search.h, device_fused_attend.h and
// (captured) device_graph.h. The backward pass (attend_backward.h) searches nothing: reported_rows.h reads what the
// call retrieved; retrieved_backward.h and tile_backward.h compute the gradients.

namespace mneme {

// What serves a call.
enum class Backend : uint8_t {
  kHost,          // search, local attention and fusion on the CPU
  kDeviceSearch,  // search and attention over retrieved rows on the device, the rest on the CPU
  kDeviceFused,   // all on the device
  kGraph,         // the same, captured into a CUDA graph
};

// Where the tensors of a call lie.
struct CallTensors {
  StagedTensors* staged = nullptr;  // the tensors on the device; null: all lie in host memory
  bool all_on_device = false;
  DeviceGraph* graph = nullptr;        // its stream is being captured into this graph; all tensors lie on the device
  bool memory_query_is_query = false;  // the request's memory_query is a copy of its query tensor
};

// Returns: the best backend that supports the request. With kDeviceSearch some sequences may still fall back to the
// CPU, and with kDeviceFused the call, for want of room on the device.
Backend ChooseBackend(const AttendRequest& request, const CallTensors& tensors);

// Attention over retrieved and local rows. The caller has checked the arguments. Results do not depend on the executor;
// those of backends differ in the rounding of sums. Changes the tensors of `request` where it copies them to the host.
// Errors: those of AttendOnHost and DeviceGraph::Capture; InvalidArgument for queries with NaN or infinity, except with
// kDeviceFused and kGraph, which do not read them; Unavailable if the device failed.
absl::Status Attend(AttendRequest& request, const CallTensors& tensors, Executor& executor);
// The same for tensors in host memory.
inline absl::Status Attend(AttendRequest& request, Executor& executor) {
  return Attend(request, CallTensors(), executor);
}

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_ATTEND_H_
