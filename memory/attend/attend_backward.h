// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_ATTEND_BACKWARD_H_
#define MNEME_MEMORY_ATTEND_ATTEND_BACKWARD_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"

#include "base/parallel.h"
#include "memory/attend/request.h"

namespace mneme {

// The gradients of a loss by the inputs of a call of Attend (docs/design/attention.md).
struct AttendBackwardRequest {
  explicit AttendBackwardRequest(const AttendRequest& request) : forward(request) {}

  const AttendRequest& forward;        // of its outputs only retrieved_tokens, which is read
  absl::Span<const uint8_t> failed;    // [sequences]: 1: forward has failed, so the gradients are 0; empty: none has
  bool memory_query_is_query = false;  // forward.retrieve.memory_query is forward.query
  RowTensor output_gradient;           // [tokens, query_heads, value_dim]
  const float* log_sum_exp_gradient = nullptr;  // [tokens, query_heads]; null: zeros

  // Outputs. Not wanted: data null, or null.
  MutableRowTensor query;         // [tokens, query_heads, key_dim]; with memory_query_is_query: of both
  MutableRowTensor memory_query;  // likewise
  MutableRowTensor local_keys;    // [local rows, kv_heads, key_dim]
  MutableRowTensor local_values;  // [local rows, kv_heads, value_dim]
  float* memory_bias = nullptr;   // [query_heads], as the next two
  float* gate = nullptr;
  float* scale = nullptr;
};

// Writes the gradients, for tensors in host memory. The retrieved rows are constant. The caller has checked the
// arguments. Results do not depend on the executor, and those of a sequence's tensors not on the other sequences.
// Errors: InvalidArgument for queries with NaN or infinity; those of ReportedRows::Read. Then no output is written.
absl::Status AttendBackward(const AttendBackwardRequest& request, Executor& executor);

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_ATTEND_BACKWARD_H_
