// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <utility>
#include <vector>

#include "base/status.h"
#include "capi/src/attend_args.h"
#include "capi/src/handles.h"
#include "capi/src/structs.h"
#include "memory/attend/device_graph.h"

namespace mneme::capi {
namespace {

absl::StatusOr<mneme_graph*> NewGraph(const std::shared_ptr<StoreObject>& store) {
  if (store->store->device() == nullptr) {
    return absl::FailedPreconditionError(
        "store: expected one with a device (options.device_budget_bytes, and a CUDA device), got one without");
  }
  MNEME_ASSIGN_OR_RETURN(std::unique_ptr<DeviceGraph> graph, DeviceGraph::New(*store->store->device()));
  return NewHandle(std::make_shared<GraphObject>(store, std::move(graph)));
}

absl::Status Update(const GraphObject& object, mneme_memory* const* memories, size_t batch,
                    const mneme_graph_update_args& args) {
  if (memories == nullptr) return NullArgument("memories");
  if (batch < 1 || batch > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("batch: expected 1 to 65535 sequences, got ", batch));
  }
  std::vector<std::shared_ptr<MemoryObject>> objects(batch);
  std::vector<Memory*> pointers(batch);
  for (size_t i = 0; i < batch; ++i) {
    if (memories[i] == nullptr) continue;
    MNEME_ASSIGN_OR_RETURN(objects[i], FindHandle<MemoryObject>(absl::StrCat("memories[", i, "]"), memories[i]));
    pointers[i] = objects[i]->memory.get();
  }
  MNEME_RETURN_IF_ERROR(CheckPositions("args.query_positions", args.query_positions, object.graph->tokens()));
  const GraphUpdate update = {.memories = pointers,
                              .memory_begin = args.memory_begin,
                              .memory_end = args.memory_end,
                              .local_offsets = args.local_offsets,
                              .query_positions = args.query_positions};
  return NameArgument(
      object.graph->Update(update, args.stream != nullptr, args.stream != nullptr ? args.stream->handle : nullptr));
}

}  // namespace
}  // namespace mneme::capi

extern "C" {

using namespace mneme;        // NOLINT: the entry points only
using namespace mneme::capi;  // NOLINT

mneme_status mneme_graph_create(mneme_store* store, mneme_graph** graph) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<StoreObject> object, FindHandle<StoreObject>("store", store));
    if (graph == nullptr) return NullArgument("graph");
    MNEME_ASSIGN_OR_RETURN(*graph, NewGraph(object));
    return absl::OkStatus();
  });
}

mneme_status mneme_graph_update(mneme_graph* graph, mneme_memory* const* memories, size_t batch,
                                const mneme_graph_update_args* args) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<GraphObject> object, FindHandle<GraphObject>("graph", graph));
    MNEME_ASSIGN_OR_RETURN(const mneme_graph_update_args given, ReadStruct("args", args));
    return Update(*object, memories, batch, given);
  });
}

void mneme_graph_release(mneme_graph* graph) {
  if (graph == nullptr) return;
  // A call that still uses the graph keeps it alive, so a release never has to be refused.
  Guard([&] { return RemoveHandle<GraphObject>("graph", graph, true); });
}

}  // extern "C"
