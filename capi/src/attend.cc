// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <memory_resource>

#include "base/scratch.h"
#include "base/status.h"
#include "capi/src/attend_args.h"
#include "capi/src/device_tensors.h"
#include "capi/src/structs.h"
#include "capi/src/tensors.h"
#include "memory/attend/attend.h"
#include "memory/attend/search.h"

namespace mneme::capi {
namespace {

absl::Status ReadMask(const mneme_attend_args& args, LocalMask& mask) {
  switch (args.local_mask) {
    case MNEME_MASK_CAUSAL: mask.kind = LocalMask::Kind::kCausal; break;
    case MNEME_MASK_NONE: mask.kind = LocalMask::Kind::kNone; break;
    case MNEME_MASK_SLIDING_WINDOW:
      mask.kind = LocalMask::Kind::kSlidingWindow;
      mask.window = args.mask_window;
      if (mask.window < 1) {
        return absl::InvalidArgumentError(
            absl::StrCat("args.mask_window: expected 1 token or more, got ", args.mask_window));
      }
      break;
    default:
      mask.kind = LocalMask::Kind::kBits;
      mask.bits = args.mask_bits;
      mask.bits_stride = args.mask_bits_stride;
      if (mask.bits == nullptr) return NullArgument("args.mask_bits");
  }
  return absl::OkStatus();
}

// The local rows and the mask of sequence `number`; local_rows: those of the whole batch.
absl::Status ReadLocalRange(const mneme_attend_args& args, size_t number, int64_t local_rows, const LocalMask& mask,
                            Sequence& sequence) {
  sequence.local_begin = args.local_offsets != nullptr ? args.local_offsets[number] : 0;
  sequence.local_end = args.local_offsets != nullptr ? args.local_offsets[number + 1] : local_rows;
  const int64_t rows = sequence.local_end - sequence.local_begin;
  sequence.mask_offset =
      args.mask_offsets != nullptr ? args.mask_offsets[number] : rows - (sequence.query_end - sequence.query_begin);
  // With these bounds no sum of offsets, query numbers and windows can overflow.
  constexpr int64_t kMaxOffset = int64_t{1} << 48;
  if (sequence.mask_offset < -kMaxOffset || sequence.mask_offset > kMaxOffset) {
    return absl::InvalidArgumentError(
        absl::StrCat("args.mask_offsets[", number, "]: expected an offset within 2^48, got ", sequence.mask_offset));
  }
  constexpr int64_t kMaxStride = int64_t{1} << 40;
  if (mask.kind == LocalMask::Kind::kBits && (mask.bits_stride < (rows + 7) / 8 || mask.bits_stride > kMaxStride)) {
    return absl::InvalidArgumentError(absl::StrCat("args.mask_bits_stride: expected ", (rows + 7) / 8,
                                                   " bytes or more for the ", rows, " local rows of sequence ", number,
                                                   ", up to 2^40, got ", mask.bits_stride));
  }
  return absl::OkStatus();
}

absl::Status ReadLocal(const mneme_attend_args& args, const LayerCard& layer, DeviceTensors& on_device,
                       AttendRequest& request, absl::Span<Sequence> sequences) {
  if (args.local_mask < MNEME_MASK_CAUSAL || args.local_mask > MNEME_MASK_BITS) {
    return absl::InvalidArgumentError(
        absl::StrCat("args.local_mask: expected a mneme_local_mask (0 to 3), got ", args.local_mask));
  }
  if ((args.local_keys == nullptr) != (args.local_values == nullptr)) {
    return NullArgument(args.local_keys == nullptr ? "args.local_keys (with local_values)"
                                                   : "args.local_values (with local_keys)");
  }
  if (args.local_keys == nullptr) return absl::OkStatus();
  MNEME_RETURN_IF_ERROR(on_device.Read("args.local_keys", args.local_keys, &request.local_keys));
  MNEME_RETURN_IF_ERROR(on_device.Read("args.local_values", args.local_values, &request.local_values));
  const RowTensor& keys = request.local_keys;
  const RowTensor& values = request.local_values;
  MNEME_RETURN_IF_ERROR(
      CheckShape("args.local_keys", keys.rows, keys.heads, keys.dim, keys.rows, layer.kv_heads, layer.key_dim));
  MNEME_RETURN_IF_ERROR(CheckShape("args.local_values", values.rows, values.heads, values.dim, keys.rows,
                                   layer.kv_heads, layer.value_dim));
  MNEME_RETURN_IF_ERROR(CheckOffsets("args.local_offsets", args.local_offsets, sequences.size(), keys.rows));
  MNEME_RETURN_IF_ERROR(ReadMask(args, request.mask));
  for (size_t i = 0; i < sequences.size(); ++i) {
    MNEME_RETURN_IF_ERROR(ReadLocalRange(args, i, keys.rows, request.mask, sequences[i]));
  }
  return absl::OkStatus();
}

// Returns: a card with the shapes of the tensors, for a call without a memory, which has no card.
absl::StatusOr<LayerCard> LayerOfTensors(const mneme_attend_args& args, const RowTensor& query) {
  if (args.local_keys == nullptr || args.local_values == nullptr) {
    return absl::InvalidArgumentError(
        "memories: expected at least one memory, or local_keys and local_values; got neither");
  }
  MNEME_ASSIGN_OR_RETURN(const RowTensor keys, ReadRowTensor("args.local_keys", args.local_keys));
  MNEME_ASSIGN_OR_RETURN(const RowTensor values, ReadRowTensor("args.local_values", args.local_values));
  LayerCard layer;
  layer.layer = args.layer;
  layer.query_heads = static_cast<int32_t>(query.heads);
  layer.kv_heads = static_cast<int32_t>(keys.heads);
  layer.key_dim = static_cast<int32_t>(keys.dim);
  layer.value_dim = static_cast<int32_t>(values.dim);
  layer.scale = UsualScale(std::max<int64_t>(1, keys.dim));
  MNEME_RETURN_IF_ERROR(ValidateLayer(layer));
  return layer;
}

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

RetrieveArgs SharedArgs(const mneme_attend_args& args) {
  return {.position_policy = args.position_policy,
          .normalise_query = args.normalise_query,
          .query_offsets = args.query_offsets,
          .query_positions = args.query_positions,
          .query_local_positions = args.query_local_positions,
          .memory_begin = args.memory_begin,
          .memory_end = args.memory_end,
          .top_k = args.top_k,
          .distance = args.distance,
          .memory_bias = args.memory_bias,
          .decay = args.decay,
          .scale = args.scale,
          .gate = args.gate,
          .default_top_k = args.default_top_k,
          .default_distance = args.default_distance,
          .decay_beyond = args.decay_beyond};
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

// The query, which also gives the card of a call without a memory (of_tensors), and the memory query.
absl::Status ReadQueries(const mneme_attend_args& args, bool has_card, LayerCard& of_tensors, DeviceTensors& on_device,
                         AttendRequest& request) {
  RowTensor& query = request.query;
  MNEME_RETURN_IF_ERROR(on_device.Read("args.query", args.query, &query));
  if (!has_card) {
    MNEME_ASSIGN_OR_RETURN(of_tensors, LayerOfTensors(args, query));
  }
  const LayerCard& layer = request.retrieve.layer;
  const int64_t tokens = query.rows;
  MNEME_RETURN_IF_ERROR(
      CheckShape("args.query", tokens, query.heads, query.dim, tokens, layer.query_heads, layer.key_dim));
  RowTensor& memory_query = request.retrieve.memory_query;
  if (args.memory_query == nullptr) {
    memory_query = query;
    return absl::OkStatus();
  }
  MNEME_RETURN_IF_ERROR(on_device.Read("args.memory_query", args.memory_query, &memory_query));
  return CheckShape("args.memory_query", memory_query.rows, memory_query.heads, memory_query.dim, tokens,
                    layer.query_heads, layer.key_dim);
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
  if (args.fusion < MNEME_FUSION_JOINT || args.fusion > MNEME_FUSION_LOCAL_ONLY) {
    return absl::InvalidArgumentError(absl::StrCat("args.fusion: expected a mneme_fusion (0 to 3), got ", args.fusion));
  }
  Scratch scratch;
  MNEME_ASSIGN_OR_RETURN(const Batch batch, Batch::Read(memories, batch_size, args.snapshots, args.layer, &scratch));
  const LayerCard* const card = batch.Layer(args.layer);
  LayerCard of_tensors;
  const LayerCard& layer = card != nullptr ? *card : of_tensors;
  AttendRequest request(layer);
  DeviceTensors on_device(batch.first != nullptr ? batch.first->store->store.get() : nullptr, args.stream);
  MNEME_RETURN_IF_ERROR(ReadQueries(args, card != nullptr, of_tensors, on_device, request));
  std::pmr::vector<HeadRule> heads(&scratch);
  std::pmr::vector<Sequence> sequences(&scratch);
  MNEME_RETURN_IF_ERROR(
      ReadRetrieve(SharedArgs(args), batch, layer, request.query.rows, request.retrieve, heads, sequences));
  MNEME_RETURN_IF_ERROR(ReadLocal(args, layer, on_device, request, absl::MakeSpan(sequences)));
  request.fusion = static_cast<Fusion>(args.fusion);
  request.retrieve.use_memory_bias = request.fusion == Fusion::kJoint;
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
