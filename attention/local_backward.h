// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_LOCAL_BACKWARD_H_
#define MNEME_ATTENTION_LOCAL_BACKWARD_H_

#include <cstdint>

#include "attention/local.h"

namespace mneme {

// What the gradients of local attention are computed from, by query row. With p_j the weight of row j in the softmax of
// the local rows, the gradient of its logit is p_j (output_gradient · v_j - offset).
struct LocalUpstream {
  const float* log_sum_exp = nullptr;       // [query_count, group], from AttendLocal of the same problem
  const float* output_gradients = nullptr;  // [query_count, group, value_dim]
  const float* offsets = nullptr;           // [query_count, group]
};

// Where the gradients go; null: not wanted. Rows of keys and values are padded: PaddedDim floats each, of which those
// beyond the dim mean nothing.
struct LocalGradients {
  float* queries = nullptr;  // [query_count, group, key_dim], overwritten
  float* keys = nullptr;     // [row_count, PaddedDim(key_dim)], added to
  float* values = nullptr;   // [row_count, PaddedDim(value_dim)], added to
  double* scales = nullptr;  // [group], added to
};

inline constexpr int64_t PaddedDim(int64_t dim) {
  return (dim + 15) / 16 * 16;
}

// Adds up the gradients of a problem's inputs over its queries and heads. The bits depend on the problem alone. A
// hidden row is never multiplied. An output gradient that is not finite makes NaN of any gradient.
void AttendLocalBackward(const LocalProblem& problem, const LocalUpstream& upstream, const LocalGradients& gradients);

}  // namespace mneme

#endif  // MNEME_ATTENTION_LOCAL_BACKWARD_H_
