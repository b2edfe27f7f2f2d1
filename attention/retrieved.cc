// SPDX-License-Identifier: Apache-2.0
#include "attention/retrieved.h"

#include <algorithm>

#include "attention/attend_kernels.h"
#include "attention/state.h"

namespace mneme {

float AttendRetrievedWith(const AttendKernels& kernels, const float* logits, const void* const* value_rows,
                          int64_t count, DType dtype, int64_t value_dim, float* output) {
  if (count <= 0) {
    std::fill_n(output, value_dim, 0.0f);
    return kEmptyLogSumExp;
  }
  return kernels.attend_retrieved({
      .logits = logits,
      .value_rows = value_rows,
      .count = count,
      .dtype = dtype,
      .value_dim = value_dim,
      .output = output,
  });
}

float AttendRetrieved(const float* logits, const void* const* value_rows, int64_t count, DType dtype, int64_t value_dim,
                      float* output) {
  return AttendRetrievedWith(AttendKernelsFor(BestCpuTarget()), logits, value_rows, count, dtype, value_dim, output);
}

void AddRows(const float* weights, const void* const* rows, int64_t count, DType dtype, int64_t dim, float* sum) {
  AttendKernelsFor(BestCpuTarget()).add_rows(weights, rows, count, dtype, dim, sum);
}

}  // namespace mneme
