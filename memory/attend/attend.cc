// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/attend.h"

#include <optional>
#include <utility>
#include <vector>

#include "base/status.h"
#include "memory/attend/check_queries.h"
#include "memory/attend/device_fused_attend.h"
#include "memory/attend/device_search.h"
#include "memory/attend/device_support.h"
#include "memory/attend/host_attend.h"
#include "memory/store_context.h"

namespace mneme {
namespace {

Backend ChooseHostBackend(const AttendRequest& request) {
  for (const Sequence& sequence : request.retrieve.sequences) {
    if (sequence.memory != nullptr && sequence.memory->context().device() != nullptr) return Backend::kDeviceSearch;
  }
  return Backend::kHost;
}

// Sets AttendRequest::statuses by the queries of each sequence. Errors: without statuses, those of CheckQueries.
absl::Status CheckAllQueries(const AttendRequest& request, bool memory_query_is_query) {
  for (size_t i = 0; i < request.retrieve.sequences.size(); ++i) {
    absl::Status status = CheckQueries(request, request.retrieve.sequences[i], memory_query_is_query);
    if (request.statuses.empty()) {
      MNEME_RETURN_IF_ERROR(status);
    } else {
      request.statuses[i] = std::move(status);
    }
  }
  return absl::OkStatus();
}

// Lets the CPU write the outputs. Tensors that lie on the device are copied to the host first, and the output back at
// the end.
absl::Status AttendThroughHost(AttendRequest& request, const CallTensors& tensors, bool device_search,
                               Executor& executor) {
  if (tensors.staged != nullptr) MNEME_RETURN_IF_ERROR(tensors.staged->CopyToHost());
  if (tensors.memory_query_is_query) request.retrieve.memory_query = request.query;
  MNEME_RETURN_IF_ERROR(CheckAllQueries(request, tensors.memory_query_is_query));
  std::vector<std::optional<RetrievedStates>> device_states;
  if (device_search) device_states = SearchOnDevice(request);
  MNEME_RETURN_IF_ERROR(AttendOnHost(request, device_states, executor));
  return tensors.staged != nullptr ? tensors.staged->CopyToDevice() : absl::OkStatus();
}

}  // namespace

Backend ChooseBackend(const AttendRequest& request, const CallTensors& tensors) {
  if (tensors.graph != nullptr) return Backend::kGraph;
  if (tensors.all_on_device && CheckDeviceSupport(request, DevicePart::kAll).supported()) return Backend::kDeviceFused;
  return ChooseHostBackend(request);
}

absl::Status Attend(AttendRequest& request, const CallTensors& tensors, Executor& executor) {
  Backend backend = ChooseBackend(request, tensors);
  if (backend == Backend::kGraph) return tensors.graph->Capture(request, tensors.staged->stream());
  if (backend == Backend::kDeviceFused) {
    const StagedTensors& staged = *tensors.staged;
    MNEME_ASSIGN_OR_RETURN(const bool done,
                           DeviceFusedAttend(request, *staged.device(), {staged.has_stream(), staged.stream()}));
    if (done) return absl::OkStatus();
    backend = ChooseHostBackend(request);
  }
  return AttendThroughHost(request, tensors, backend == Backend::kDeviceSearch, executor);
}

}  // namespace mneme
