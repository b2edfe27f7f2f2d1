// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_STATE_H_
#define MNEME_ATTENTION_STATE_H_

#include <cstdint>
#include <limits>

namespace mneme {

// An attention state of a set of rows is (output, log_sum_exp):
//   output [value_dim] = sum_i softmax(logits)_i v_i        log_sum_exp = ln sum_i exp(logit_i)
// The state of the empty set is (0, -infinity). The states of disjoint sets merge to the state of their union
// (FlashInfer calls this cascade attention).

inline constexpr float kEmptyLogSumExp = -std::numeric_limits<float>::infinity();

// Merges the states of two disjoint sets; the first is overwritten with the result. Merging with the empty state
// changes no bit.
void MergeState(float* output, float* log_sum_exp, const float* other_output, float other_log_sum_exp,
                int64_t value_dim);

// local [value_dim] = sigmoid(gate) * memory + (1 - sigmoid(gate)) * local, the gate of Memorizing Transformers (Wu et
// al. 2022). Both inputs are outputs of states; that of the empty state counts as a zero vector, as in the paper's
// code.
void GateState(float* local, const float* memory, float gate, int64_t value_dim);

}  // namespace mneme

#endif  // MNEME_ATTENTION_STATE_H_
