// SPDX-License-Identifier: Apache-2.0
#include "tests/capi/calls.h"

namespace mneme {

AttendCall::AttendCall(mneme_memory* memory) : memories{memory} {
  query.Fill(11);
  memory_query.Fill(12);
  local_keys.Fill(13);
  local_values.Fill(14);
  output.FillGuard();
  memories_given = memories.data();
  args.layer = kLayer;
  args.query = &query.view;
  args.memory_query = &memory_query.view;
  args.query_offsets = query_offsets.data();
  args.query_positions = query_positions.data();
  args.query_local_positions = query_local_positions.data();
  args.local_keys = &local_keys.view;
  args.local_values = &local_values.view;
  args.local_offsets = local_offsets.data();
  args.mask_offsets = mask_offsets.data();
  args.mask_window = 4;
  args.mask_bits = mask_bits.data();
  args.mask_bits_stride = 1;
  args.snapshots = snapshots.data();
  args.memory_begin = memory_begin.data();
  args.memory_end = memory_end.data();
  args.top_k = top_k.data();
  args.distance = distance.data();
  args.memory_bias = memory_bias.data();
  args.decay = decay.data();
  args.scale = scale.data();
  args.gate = gate.data();
  args.output = &output.view;
  args.log_sum_exp = log_sum_exp.data();
  args.retrieved_tokens = retrieved_tokens.data();
  args.retrieved_scores = retrieved_scores.data();
  args.retrieved_stride = 3;
  args.memory_mass = memory_mass.data();
  args.statuses = statuses.data();
}

void AttendCall::Batch(size_t n) {
  batch = n;
  memories.resize(n);
  memories_given = memories.data();
  query_offsets.assign(n + 1, 0);
  query_offsets[n] = 2;
  local_offsets.assign(n + 1, 0);
  local_offsets[n] = 5;
  snapshots.assign(n, nullptr);
  mask_offsets.assign(n, 3);
  memory_begin.assign(n, 0);
  memory_end.assign(n, 307);
  args.query_offsets = query_offsets.data();
  args.local_offsets = local_offsets.data();
  args.snapshots = snapshots.data();
  args.mask_offsets = mask_offsets.data();
  args.memory_begin = memory_begin.data();
  args.memory_end = memory_end.data();
}

bool AttendCall::OutputsUntouched() const {
  return output.Guarded() && log_sum_exp.Untouched() && memory_mass.Untouched() && retrieved_scores.Untouched() &&
         retrieved_tokens.Untouched() && statuses.Untouched();
}

AttendBackwardCall::AttendBackwardCall(mneme_memory* memory) : forward(memory) {
  EXPECT_OK(forward.Run());
  output_gradient.Fill(15);
  for (Tensor* tensor : {&query_gradient, &memory_query_gradient, &local_keys_gradient, &local_values_gradient}) {
    tensor->FillGuard();
  }
  args.attend = &forward.args;
  args.output_gradient = &output_gradient.view;
  args.log_sum_exp_gradient = log_sum_exp_gradient.data();
  args.query_gradient = &query_gradient.view;
  args.memory_query_gradient = &memory_query_gradient.view;
  args.local_keys_gradient = &local_keys_gradient.view;
  args.local_values_gradient = &local_values_gradient.view;
  args.memory_bias_gradient = memory_bias_gradient.data();
  args.gate_gradient = gate_gradient.data();
  args.scale_gradient = scale_gradient.data();
}

bool AttendBackwardCall::OutputsUntouched() const {
  return query_gradient.Guarded() && memory_query_gradient.Guarded() && local_keys_gradient.Guarded() &&
         local_values_gradient.Guarded() && memory_bias_gradient.Untouched() && gate_gradient.Untouched() &&
         scale_gradient.Untouched();
}

SearchCall::SearchCall(mneme_memory* memory) : memories{memory} {
  query.Fill(11);
  keys.FillGuard();
  values.FillGuard();
  memories_given = memories.data();
  args.layer = kLayer;
  args.query = &query.view;
  args.query_offsets = query_offsets.data();
  args.query_positions = query_positions.data();
  args.query_local_positions = query_local_positions.data();
  args.snapshots = snapshots.data();
  args.memory_begin = memory_begin.data();
  args.memory_end = memory_end.data();
  args.distance = distance.data();
  args.decay = decay.data();
  args.scale = scale.data();
  args.top_k = 3;
  args.tokens = tokens.data();
  args.scores = scores.data();
  args.keys = &keys.view;
  args.values = &values.view;
}

void SearchCall::Batch(size_t n) {
  batch = n;
  memories.resize(n);
  memories_given = memories.data();
  query_offsets.assign(n + 1, 0);
  query_offsets[n] = 2;
  snapshots.assign(n, nullptr);
  memory_begin.assign(n, 0);
  memory_end.assign(n, 307);
  args.query_offsets = query_offsets.data();
  args.snapshots = snapshots.data();
  args.memory_begin = memory_begin.data();
  args.memory_end = memory_end.data();
}

bool SearchCall::OutputsUntouched() const {
  return tokens.Untouched() && scores.Untouched() && keys.Guarded() && values.Guarded();
}

MergeCall::MergeCall(mneme_memory*) {
  a.Fill(1);
  b.Fill(2);
  output.FillGuard();
  args.a_output = &a.view;
  args.a_log_sum_exp = a_lse.data();
  args.b_output = &b.view;
  args.b_log_sum_exp = b_lse.data();
  args.output = &output.view;
  args.log_sum_exp = log_sum_exp.data();
}

}  // namespace mneme
