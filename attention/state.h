// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_STATE_H_
#define MNEME_ATTENTION_STATE_H_

#include <cstdint>
#include <limits>

namespace mneme {

// Log-sum-exp of an empty set of rows.
inline constexpr float kEmptyLogSumExp = -std::numeric_limits<float>::infinity();

// An attention state over a set of rows is (output, log_sum_exp): output [value_dim] = sum softmax_i v_i and
// log_sum_exp = ln sum exp(logit_i). The empty set is (0, -infinity). States of disjoint sets merge exactly.

// (output, log_sum_exp) of a union from those of two disjoint sets; the first is overwritten. Merging with the empty
// state changes no bit; two empty ones give the empty one.
void MergeState(float* output, float* log_sum_exp, const float* other_output, float other_log_sum_exp,
                int64_t value_dim);

// Memorizing Transformers' gate: output = sigmoid(gate) * memory + (1 - sigmoid(gate)) * local, written to `local`. The
// two are separately normalised; an empty one counts as a zero vector, as the paper's code does.
void GateState(float* local, const float* memory, float gate, int64_t value_dim);

}  // namespace mneme

#endif  // MNEME_ATTENTION_STATE_H_
