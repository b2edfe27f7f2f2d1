// SPDX-License-Identifier: Apache-2.0
// The kernels of target "avx512". See kernels.h for what must not be called from here.
#define MNEME_LANES 16

#include "attention/local-inl.h"
#include "attention/retrieved-inl.h"

namespace mneme {

void AttendLocalAvx512(const LocalKernelArgs& args) {
  AttendLocalOnTarget(args);
}

float AttendRetrievedAvx512(const RetrievedKernelArgs& args) {
  return AttendRetrievedOnTarget(args);
}

void ExpForTestAvx512(const float* x, int64_t n, float* result) {
  for (int64_t i = 0; i < n; i += kLanes) Store(Exp(Load(x + i)), result + i);
}

}  // namespace mneme
