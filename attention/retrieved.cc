// SPDX-License-Identifier: Apache-2.0
#include "attention/retrieved.h"

#include <algorithm>

#include "attention/kernels.h"
#include "attention/state.h"

namespace mneme {

float AttendRetrievedOn(CpuTarget target, const float* logits, const void* const* value_rows, int64_t count,
                        DType dtype, int64_t value_dim, float* output) {
  if (count <= 0) {
    std::fill_n(output, value_dim, 0.0f);
    return kEmptyLogSumExp;
  }
  const RetrievedKernelArgs args = {logits, value_rows, count, dtype, value_dim, output};
  switch (target) {
    case CpuTarget::kPlain: return AttendRetrievedPlain(args);
#if defined(__x86_64__)
    case CpuTarget::kAvx2: return AttendRetrievedAvx2(args);
    case CpuTarget::kAvx512: return AttendRetrievedAvx512(args);
#else
    default: break;
#endif
  }
  return kEmptyLogSumExp;
}

float AttendRetrieved(const float* logits, const void* const* value_rows, int64_t count, DType dtype, int64_t value_dim,
                      float* output) {
  return AttendRetrievedOn(BestCpuTarget(), logits, value_rows, count, dtype, value_dim, output);
}

void ExpForTestOn(CpuTarget target, const float* x, int64_t n, float* result) {
  switch (target) {
    case CpuTarget::kPlain: return ExpForTestPlain(x, n, result);
#if defined(__x86_64__)
    case CpuTarget::kAvx2: return ExpForTestAvx2(x, n, result);
    case CpuTarget::kAvx512: return ExpForTestAvx512(x, n, result);
#else
    default: break;
#endif
  }
}

}  // namespace mneme
