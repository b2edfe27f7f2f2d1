// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_BACKWARD_REQUEST_H_
#define MNEME_MEMORY_ATTEND_BACKWARD_REQUEST_H_

#include <cstdint>

#include "absl/types/span.h"

#include "memory/attend/request.h"

namespace mneme {

// The backward pass of one call of Attend: the gradients of a loss with respect to the call's inputs
// (docs/design/attention.md has the formulas).
struct AttendBackwardRequest {
  explicit AttendBackwardRequest(const AttendRequest& request) : forward(request) {}

  const AttendRequest& forward;        // the call. Of its outputs only retrieved_tokens is used, and that is read
  absl::Span<const uint8_t> failed;    // [sequences]: 1: forward has failed, so the gradients are 0; empty: none has
  bool memory_query_is_query = false;  // forward.retrieve.memory_query is forward.query
  RowTensor output_gradient;           // [tokens, query_heads, value_dim]
  const float* log_sum_exp_gradient = nullptr;  // [tokens, query_heads]; null: zeros

  // Outputs, the gradients with respect to the input of the same name. A tensor without data, or a null pointer, is not
  // wanted.
  MutableRowTensor query;         // [tokens, query_heads, key_dim]; with memory_query_is_query the sum of both
  MutableRowTensor memory_query;  // [tokens, query_heads, key_dim]
  MutableRowTensor local_keys;    // [local rows, kv_heads, key_dim]
  MutableRowTensor local_values;  // [local rows, kv_heads, value_dim]
  float* memory_bias = nullptr;   // [query_heads], as the next two
  float* gate = nullptr;
  float* scale = nullptr;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_BACKWARD_REQUEST_H_
