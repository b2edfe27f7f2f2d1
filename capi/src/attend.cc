// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <memory_resource>

#include "base/scratch.h"
#include "base/status.h"
#include "capi/src/attend_args.h"
#include "capi/src/attend_inputs.h"
#include "capi/src/device_tensors.h"
#include "capi/src/structs.h"
#include "capi/src/tensors.h"
#include "memory/attend/attend.h"
#include "memory/attend/search.h"

namespace mneme::capi {
namespace {

// Checks a call that is captured, or that has a graph. Returns: the graph that it is captured into.
absl::StatusOr<std::shared_ptr<GraphObject>> FindGraph(const mneme_attend_args& args, const Batch& batch,
                                                       const DeviceTensors& on_device, bool captured) {
  if (args.graph == nullptr) {
    return absl::FailedPreconditionError(
        "args.stream: expected one that is not being captured, or args.graph with it; got one that is");
  }
  MNEME_ASSIGN_OR_RETURN(std::shared_ptr<GraphObject> graph, FindHandle<GraphObject>("args.graph", args.graph));
  if (!captured) {
    return absl::FailedPreconditionError(
        "args.graph: expected NULL where args.stream is not being captured, got a graph");
  }
  if (batch.first == nullptr || graph->store != batch.first->store) {
    return absl::InvalidArgumentError("args.graph: expected one of the memories' store, got one of another");
  }
  if (!on_device.AllOnDevice()) {
    return absl::InvalidArgumentError(absl::StrCat(on_device.on_host(),
                                                   ".device_type: expected a CUDA tensor (MNEME_DEVICE_CUDA, 2) in a "
                                                   "call that is captured, got host memory (1)"));
  }
  const struct {
    absl::string_view name;
    const void* given;
    absl::string_view why;
  } absent[] = {
      {"log_sum_exp", args.log_sum_exp, "whose host does not wait for it"},
      {"retrieved_tokens", args.retrieved_tokens, "whose host does not wait for it"},
      {"retrieved_scores", args.retrieved_scores, "whose host does not wait for it"},
      {"memory_mass", args.memory_mass, "whose host does not wait for it"},
      {"snapshots", args.snapshots, "which sees what mneme_graph_update lets it"},
      {"memory_begin", args.memory_begin, "for which mneme_graph_update takes it"},
      {"memory_end", args.memory_end, "for which mneme_graph_update takes it"},
      {"query_positions", args.query_positions, "for which mneme_graph_update takes it"},
      {"mask_offsets", args.mask_offsets, "whose queries are the newest local rows"},
  };
  for (const auto& [name, given, why] : absent) {
    if (given == nullptr) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("args.", name, ": expected NULL in a call that is captured, ", why, "; got a pointer"));
  }
  return graph;
}

RetrieveArgs SharedArgs(const mneme_search_args& args) {
  return {.position_policy = args.position_policy,
          .normalise_query = args.normalise_query,
          .query_offsets = args.query_offsets,
          .query_positions = args.query_positions,
          .query_local_positions = args.query_local_positions,
          .memory_begin = args.memory_begin,
          .memory_end = args.memory_end,
          .top_k = nullptr,
          .distance = args.distance,
          .memory_bias = nullptr,
          .decay = args.decay,
          .scale = args.scale,
          .gate = nullptr,
          .default_top_k = args.top_k,
          .default_distance = args.default_distance,
          .decay_beyond = args.decay_beyond};
}

absl::Status ReadOutputs(const mneme_attend_args& args, DeviceTensors& on_device, AttendRequest& request) {
  const LayerCard& layer = request.retrieve.layer;
  MutableRowTensor& output = request.output;
  MNEME_RETURN_IF_ERROR(on_device.Read("args.output", args.output, &output));
  MNEME_RETURN_IF_ERROR(CheckShape("args.output", output.rows, output.heads, output.dim, request.query.rows,
                                   layer.query_heads, layer.value_dim));
  const bool reports = args.retrieved_tokens != nullptr || args.retrieved_scores != nullptr;
  if (reports && (args.retrieved_stride < 1 || args.retrieved_stride > (int64_t{1} << 32))) {
    return absl::InvalidArgumentError(
        absl::StrCat("args.retrieved_stride: expected 1 to 2^32, got ", args.retrieved_stride));
  }
  request.log_sum_exp = args.log_sum_exp;
  request.retrieved_tokens = args.retrieved_tokens;
  request.retrieved_scores = args.retrieved_scores;
  request.retrieved_stride = reports ? args.retrieved_stride : 0;
  request.memory_mass = args.memory_mass;
  return absl::OkStatus();
}

absl::Status Attend(mneme_memory* const* memories, size_t batch_size, const mneme_attend_args& args) {
  MNEME_RETURN_IF_ERROR(CheckFusion(args));
  Scratch scratch;
  MNEME_ASSIGN_OR_RETURN(const Batch batch, Batch::Read(memories, batch_size, args.snapshots, args.layer, &scratch));
  const LatencyTimer timer(batch.first != nullptr ? batch.first->store->Latency(&CallLatencies::attend) : nullptr);
  const LayerCard* const card = batch.Layer(args.layer);
  LayerCard of_tensors;
  const LayerCard& layer = card != nullptr ? *card : of_tensors;
  AttendRequest request(layer);
  DeviceTensors on_device(batch.first != nullptr ? batch.first->store->store.get() : nullptr, args.stream);
  std::pmr::vector<HeadRule> heads(&scratch);
  std::pmr::vector<Sequence> sequences(&scratch);
  MNEME_RETURN_IF_ERROR(ReadAttendInputs(args, batch, of_tensors, on_device, request, heads, sequences));
  MNEME_RETURN_IF_ERROR(ReadOutputs(args, on_device, request));
  std::pmr::vector<absl::Status> statuses(args.statuses != nullptr ? batch_size : 0, &scratch);
  request.statuses = absl::MakeSpan(statuses);

  CallTensors tensors = {.staged = on_device.staged(),
                         .all_on_device = on_device.AllOnDevice(),
                         .memory_query_is_query = args.memory_query == nullptr};
  MNEME_ASSIGN_OR_RETURN(const bool captured, on_device.IsCaptured());
  std::shared_ptr<GraphObject> graph;
  if (captured || args.graph != nullptr) {
    MNEME_ASSIGN_OR_RETURN(graph, FindGraph(args, batch, on_device, captured));
    tensors.graph = graph->graph.get();
  }
  Executor& executor = batch.first != nullptr ? *batch.first->store->executor : InlineExecutor();
  MNEME_RETURN_IF_ERROR(NameArgument(mneme::Attend(request, tensors, executor)));
  for (size_t i = 0; i < statuses.size(); ++i) {
    args.statuses[i] = statuses[i].ok() ? MNEME_OK : Report(NameArgument(statuses[i]));
  }
  return absl::OkStatus();
}

// The arrays that a search writes. tokens: how many queries there are.
absl::Status ReadSearchOutputs(const mneme_search_args& args, int64_t tokens, SearchRequest& request) {
  const LayerCard& layer = request.retrieve.layer;
  request.top_k = args.top_k;
  request.tokens = args.tokens;
  request.scores = args.scores;
  const int64_t queries = std::max<int64_t>(1, tokens * layer.query_heads);
  constexpr int64_t kMaxSlots = int64_t{1} << 44;
  if (args.top_k > kMaxSlots / queries) {
    return absl::InvalidArgumentError(absl::StrCat("args.top_k: expected at most 2^44 rows in all for the ", queries,
                                                   " queries, got ", args.top_k, " each"));
  }
  const int64_t slots = tokens * layer.query_heads * args.top_k;
  if (args.keys != nullptr) {
    MNEME_ASSIGN_OR_RETURN(request.keys, ReadContiguousF32("args.keys", args.keys, slots * layer.key_dim));
  }
  if (args.values != nullptr) {
    MNEME_ASSIGN_OR_RETURN(request.values, ReadContiguousF32("args.values", args.values, slots * layer.value_dim));
  }
  return absl::OkStatus();
}

absl::Status Search(mneme_memory* const* memories, size_t batch_size, const mneme_search_args& args) {
  Scratch scratch;
  MNEME_ASSIGN_OR_RETURN(const Batch batch, Batch::Read(memories, batch_size, args.snapshots, args.layer, &scratch));
  if (batch.first == nullptr)
    return absl::InvalidArgumentError("memories: expected at least one memory, got only NULL");
  const LatencyTimer timer(batch.first->store->Latency(&CallLatencies::search));
  const LayerCard& layer = *batch.Layer(args.layer);
  SearchRequest request{RetrieveRequest(layer)};
  RowTensor& query = request.retrieve.memory_query;
  MNEME_ASSIGN_OR_RETURN(query, ReadRowTensor("args.query", args.query));
  const int64_t tokens = query.rows;
  MNEME_RETURN_IF_ERROR(
      CheckShape("args.query", tokens, query.heads, query.dim, tokens, layer.query_heads, layer.key_dim));
  MNEME_RETURN_IF_ERROR(NameArgument(CheckFinite(Argument::kQuery, query)));
  if (args.top_k < 1 || args.top_k > (int64_t{1} << 32)) {
    return absl::InvalidArgumentError(absl::StrCat("args.top_k: expected 1 to 2^32, got ", args.top_k));
  }
  if (args.tokens == nullptr) return NullArgument("args.tokens");
  std::pmr::vector<HeadRule> heads(&scratch);
  std::pmr::vector<Sequence> sequences(&scratch);
  MNEME_RETURN_IF_ERROR(ReadRetrieve(SharedArgs(args), batch, layer, tokens, request.retrieve, heads, sequences));
  MNEME_RETURN_IF_ERROR(ReadSearchOutputs(args, tokens, request));
  return NameArgument(mneme::Search(request, *batch.first->store->executor));
}

}  // namespace
}  // namespace mneme::capi

extern "C" {

using namespace mneme;        // NOLINT: the entry points only
using namespace mneme::capi;  // NOLINT

mneme_status mneme_attend(mneme_memory* const* memories, size_t batch, const mneme_attend_args* args) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const mneme_attend_args given, ReadStruct("args", args));
    return capi::Attend(memories, batch, given);
  });
}

mneme_status mneme_search(mneme_memory* const* memories, size_t batch, const mneme_search_args* args) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const mneme_search_args given, ReadStruct("args", args));
    return capi::Search(memories, batch, given);
  });
}

}  // extern "C"
