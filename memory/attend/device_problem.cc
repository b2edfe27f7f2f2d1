// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/device_problem.h"

#include "memory/attend/device_support.h"
#include "memory/attend/memory_view.h"

namespace mneme {

cuda::AttendProblem MakeProblem(const RetrieveRequest& request, int64_t tokens, size_t batch, int64_t top_k,
                                DType query_type, DType stored) {
  const LayerCard& layer = request.layer;
  cuda::AttendProblem problem;
  problem.tokens = tokens;
  problem.batch = static_cast<int32_t>(batch);
  problem.q_heads = layer.query_heads;
  problem.kv_heads = layer.kv_heads;
  problem.key_dim = layer.key_dim;
  problem.value_dim = layer.value_dim;
  problem.top_k = static_cast<int32_t>(top_k);
  problem.type = query_type;
  problem.memory_type = stored;
  problem.soft_cap = layer.soft_cap;
  problem.decay_beyond = request.decay_beyond;
  return problem;
}

cuda::AttendProblem MakeFusedProblem(const AttendRequest& request, DType stored) {
  const RetrieveRequest& retrieve = request.retrieve;
  const int64_t top_k = GreatestTopK(request);
  cuda::AttendProblem problem =
      MakeProblem(retrieve, request.query.rows, retrieve.sequences.size(), top_k, request.query.dtype, stored);
  problem.output_type = request.output.dtype;
  problem.query = request.query.data;
  if (top_k > 0 && retrieve.memory_query.data != request.query.data) problem.memory_query = retrieve.memory_query.data;
  problem.output = request.output.data;
  // The kernels have no kMemoryOnly and kLocalOnly: those are joint, with no local row or no row to retrieve.
  problem.fusion = request.fusion == Fusion::kGated ? Fusion::kGated : Fusion::kJoint;
  if (!CallHasLocalRows(request)) return problem;
  problem.local_keys = request.local_keys.data;
  problem.local_values = request.local_values.data;
  problem.local_key_row_stride = request.local_keys.row_stride;
  problem.local_key_head_stride = request.local_keys.head_stride;
  problem.local_value_row_stride = request.local_values.row_stride;
  problem.local_value_head_stride = request.local_values.head_stride;
  problem.local_mask = request.mask.kind;
  problem.local_window = request.mask.window;
  return problem;
}

SearchArguments::SearchArguments(const RetrieveRequest& request, const cuda::AttendProblem& problem,
                                 ArgumentBuffer& buffer)
    : rows_(buffer.AddInput<cuda::MemoryRows>(problem.batch)),
      memories_(buffer.AddInput<const cuda::MemoryRows*>(problem.batch)),
      query_offsets_(buffer.AddInput<int64_t>(problem.batch + 1)),
      scale_(buffer.AddInput<float>(problem.q_heads)),
      bias_(buffer.AddInput<float>(problem.q_heads)),
      decay_(buffer.AddInput<float>(problem.q_heads)),
      top_k_(buffer.AddInput<int32_t>(problem.q_heads)),
      positions_(buffer.AddInput<int64_t>(problem.tokens)) {
  for (const HeadRule& head : request.heads) decays_ |= head.decay > 0;
}

void SearchArguments::Fill(const RetrieveRequest& request, const ArgumentBuffer& buffer,
                           cuda::AttendProblem& problem) const {
  for (size_t i = 0; i < request.heads.size(); ++i) {
    const HeadRule& head = request.heads[i];
    buffer.Host(scale_)[i] = head.scale;
    buffer.Host(bias_)[i] = request.use_memory_bias ? head.memory_bias : 0.0f;
    buffer.Host(decay_)[i] = head.decay;
    buffer.Host(top_k_)[i] = static_cast<int32_t>(head.top_k);
  }
  for (int32_t i = 0; i < problem.batch; ++i) buffer.Host(memories_)[i] = buffer.OnDevice(rows_) + i;
  problem.memories = buffer.OnDevice(memories_);
  problem.query_offsets = buffer.OnDevice(query_offsets_);
  problem.scale = buffer.OnDevice(scale_);
  problem.bias = buffer.OnDevice(bias_);
  problem.head_top_k = buffer.OnDevice(top_k_);
  if (!decays_) return;
  problem.decay = buffer.OnDevice(decay_);
  problem.positions = buffer.OnDevice(positions_);
}

void SearchArguments::SetSequence(const RetrieveRequest& request, const Sequence& sequence, size_t number,
                                  QueryRange queries, int64_t launch_begin, int64_t memory_end,
                                  const MemoryMirror::View& view, const ArgumentBuffer& buffer) const {
  buffer.Host(rows_)[number] = view.rows;
  buffer.Host(query_offsets_)[number] = launch_begin;
  buffer.Host(query_offsets_)[number + 1] = launch_begin + queries.end - queries.begin;
  // The kernels number rows without the gap, so positions go without it, too.
  int64_t* position = buffer.Host(positions_) + launch_begin;
  for (int64_t query = queries.begin; query < queries.end; ++query) {
    *position++ = QueryPosition(request, sequence, memory_end, query) - view.gap;
  }
}

FusedArguments::FusedArguments(const AttendRequest& request, const cuda::AttendProblem& problem, ArgumentBuffer& buffer)
    : has_local_(CallHasLocalRows(request)),
      search_(request.retrieve, problem, buffer),
      local_offsets_(buffer.AddInput<int64_t>(problem.batch + 1)),
      gate_(buffer.AddInput<float>(problem.q_heads)) {}

void FusedArguments::Fill(const AttendRequest& request, const ArgumentBuffer& buffer,
                          cuda::AttendProblem& problem) const {
  search_.Fill(request.retrieve, buffer, problem);
  const absl::Span<const HeadRule> heads = request.retrieve.heads;
  for (size_t head = 0; head < heads.size(); ++head) buffer.Host(gate_)[head] = heads[head].gate;
  if (has_local_) problem.local_offsets = buffer.OnDevice(local_offsets_);
  problem.gate = buffer.OnDevice(gate_);
}

void FusedArguments::SetSequence(const RetrieveRequest& request, const Sequence& sequence, size_t number,
                                 int64_t memory_end, const MemoryMirror::View& view,
                                 const ArgumentBuffer& buffer) const {
  search_.SetSequence(request, sequence, number, {sequence.query_begin, sequence.query_end}, sequence.query_begin,
                      memory_end, view, buffer);
  buffer.Host(local_offsets_)[number] = sequence.local_begin;
  buffer.Host(local_offsets_)[number + 1] = sequence.local_end;
}

}  // namespace mneme
