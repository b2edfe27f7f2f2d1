// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_RETRIEVED_H_
#define MNEME_ATTENTION_RETRIEVED_H_

#include <cstdint>

#include "base/dtype.h"

namespace mneme {

// Softmax over retrieved rows, of one query head.
//   logits      f32 [count], final: scaled, capped, biased
//   value_rows  [count] pointers to encoded value rows (EncodeRow in base/dtype.h)
//   output      f32 [value_dim], overwritten
// Returns: the log-sum-exp. A count of 0 gives the empty state (state.h). Rows are added in the given order, so the
// same rows in the same order give the same bits.
float AttendRetrieved(const float* logits, const void* const* value_rows, int64_t count, DType dtype, int64_t value_dim,
                      float* output);

// Adds to sum f32 [dim] the sum of weights[j] * rows[j], where rows [count] point to encoded rows. The same rows in the
// same order give the same bits.
void AddRows(const float* weights, const void* const* rows, int64_t count, DType dtype, int64_t dim, float* sum);

}  // namespace mneme

#endif  // MNEME_ATTENTION_RETRIEVED_H_
