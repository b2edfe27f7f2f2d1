// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/attend_backward.h"

#include <memory_resource>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

#include "base/scratch.h"
#include "base/status.h"
#include "capi/src/attend_inputs.h"
#include "capi/src/structs.h"
#include "capi/src/tensors.h"

namespace mneme::capi {
namespace {

// Returns: an error about a field of mneme_attend_args with its name as a field of args.attend.
absl::Status NameForwardArgument(const absl::Status& status) {
  constexpr absl::string_view kPrefix = "args.";
  if (status.ok() || !absl::StartsWith(status.message(), kPrefix)) return status;
  return absl::Status(status.code(), absl::StrCat("args.attend.", status.message().substr(kPrefix.size())));
}

// What only a call of mneme_attend can use. Device tensors are refused here, by name.
absl::Status CheckHostCall(const mneme_attend_args& args) {
  const struct {
    absl::string_view name;
    const mneme_tensor* tensor;
  } tensors[] = {
      {"args.query", args.query},
      {"args.memory_query", args.memory_query},
      {"args.local_keys", args.local_keys},
      {"args.local_values", args.local_values},
  };
  for (const auto& [name, tensor] : tensors) {
    if (tensor == nullptr || tensor->device_type != MNEME_DEVICE_CUDA) continue;
    MNEME_RETURN_IF_ERROR(ReadRowTensor(name, tensor).status());
  }
  if (args.stream != nullptr) {
    return absl::InvalidArgumentError("args.stream: expected NULL, since all tensors lie in host memory; got a stream");
  }
  if (args.graph != nullptr) {
    return absl::InvalidArgumentError("args.graph: expected NULL, since no graph has a backward pass; got a graph");
  }
  return absl::OkStatus();
}

// The report of the forward call, which says what was retrieved. Not needed where nothing can have been.
absl::Status ReadReport(const mneme_attend_args& args, const Batch& batch, AttendRequest& request) {
  if (batch.first == nullptr || !RetrievesRows(request)) return absl::OkStatus();
  if (args.retrieved_tokens == nullptr) return NullArgument("args.retrieved_tokens (of the forward call)");
  if (args.retrieved_stride < 1 || args.retrieved_stride > (int64_t{1} << 32)) {
    return absl::InvalidArgumentError(
        absl::StrCat("args.retrieved_stride: expected 1 to 2^32, got ", args.retrieved_stride));
  }
  request.retrieved_tokens = args.retrieved_tokens;
  request.retrieved_stride = args.retrieved_stride;
  return absl::OkStatus();
}

// A gradient, which has the shape of the tensor that it is of. of NULL: there is no such tensor.
absl::Status ReadGradient(absl::string_view name, const mneme_tensor* tensor, absl::string_view of_name,
                          const RowTensor* of, MutableRowTensor& gradient) {
  if (tensor == nullptr) return absl::OkStatus();
  if (of == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": expected NULL where ", of_name, " is NULL, got a tensor"));
  }
  MNEME_ASSIGN_OR_RETURN(gradient, ReadMutableRowTensor(name, tensor));
  MNEME_RETURN_IF_ERROR(CheckShape(name, gradient.rows, gradient.heads, gradient.dim, of->rows, of->heads, of->dim));
  // An empty tensor may have no data, which would say that it is not wanted. Nothing is written either way.
  return absl::OkStatus();
}

absl::Status ReadGradients(const mneme_attend_backward_args& args, AttendBackwardRequest& request) {
  const AttendRequest& forward = request.forward;
  const LayerCard& layer = forward.retrieve.layer;
  RowTensor& upstream = request.output_gradient;
  MNEME_ASSIGN_OR_RETURN(upstream, ReadRowTensor("args.output_gradient", args.output_gradient));
  MNEME_RETURN_IF_ERROR(CheckShape("args.output_gradient", upstream.rows, upstream.heads, upstream.dim,
                                   forward.query.rows, layer.query_heads, layer.value_dim));
  request.log_sum_exp_gradient = args.log_sum_exp_gradient;
  const bool has_memory_query = args.attend->memory_query != nullptr, has_local = args.attend->local_keys != nullptr;
  request.memory_query_is_query = !has_memory_query;
  absl::Status reads[] = {
      ReadGradient("args.query_gradient", args.query_gradient, "args.attend.query", &forward.query, request.query),
      ReadGradient("args.memory_query_gradient", args.memory_query_gradient, "args.attend.memory_query",
                   has_memory_query ? &forward.retrieve.memory_query : nullptr, request.memory_query),
      ReadGradient("args.local_keys_gradient", args.local_keys_gradient, "args.attend.local_keys",
                   has_local ? &forward.local_keys : nullptr, request.local_keys),
      ReadGradient("args.local_values_gradient", args.local_values_gradient, "args.attend.local_values",
                   has_local ? &forward.local_values : nullptr, request.local_values),
  };
  for (const absl::Status& read : reads) MNEME_RETURN_IF_ERROR(read);
  request.memory_bias = args.memory_bias_gradient;
  request.gate = args.gate_gradient;
  request.scale = args.scale_gradient;
  return absl::OkStatus();
}

absl::Status AttendBackward(mneme_memory* const* memories, size_t batch_size, const mneme_attend_backward_args& args,
                            const mneme_attend_args& attend) {
  MNEME_RETURN_IF_ERROR(NameForwardArgument(CheckFusion(attend)));
  MNEME_RETURN_IF_ERROR(NameForwardArgument(CheckHostCall(attend)));
  Scratch scratch;
  absl::StatusOr<Batch> batch = Batch::Read(memories, batch_size, attend.snapshots, attend.layer, &scratch);
  MNEME_RETURN_IF_ERROR(NameForwardArgument(batch.status()));
  const LayerCard* const card = batch->Layer(attend.layer);
  LayerCard of_tensors;
  AttendRequest forward(card != nullptr ? *card : of_tensors);
  DeviceTensors on_host(nullptr, nullptr);
  std::pmr::vector<HeadRule> heads(&scratch);
  std::pmr::vector<Sequence> sequences(&scratch);
  MNEME_RETURN_IF_ERROR(
      NameForwardArgument(ReadAttendInputs(attend, *batch, of_tensors, on_host, forward, heads, sequences)));
  MNEME_RETURN_IF_ERROR(NameForwardArgument(ReadReport(attend, *batch, forward)));
  AttendBackwardRequest request(forward);
  MNEME_RETURN_IF_ERROR(ReadGradients(args, request));
  std::pmr::vector<uint8_t> failed(&scratch);
  if (attend.statuses != nullptr) {
    failed.resize(batch_size);
    for (size_t i = 0; i < batch_size; ++i) failed[i] = attend.statuses[i] != MNEME_OK;
  }
  request.failed = failed;
  Executor& executor = batch->first != nullptr ? *batch->first->store->executor : InlineExecutor();
  return NameForwardArgument(NameArgument(mneme::AttendBackward(request, executor)));
}

}  // namespace
}  // namespace mneme::capi

extern "C" {

using namespace mneme::capi;  // NOLINT: the entry point only

mneme_status mneme_attend_backward(mneme_memory* const* memories, size_t batch,
                                   const mneme_attend_backward_args* args) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(mneme_attend_backward_args given, ReadStruct("args", args));
    MNEME_ASSIGN_OR_RETURN(const mneme_attend_args attend, ReadStruct("args.attend", given.attend));
    given.attend = &attend;
    return AttendBackward(memories, batch, given, attend);
  });
}

}  // extern "C"
