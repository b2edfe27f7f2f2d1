// SPDX-License-Identifier: Apache-2.0
// The scan for x86-64 CPUs with AVX2, FMA and F16C. Compiled for them: nothing here may run unasked.

#include <immintrin.h>

#include "index/scan/scan_kernel.h"

namespace mneme::scan {
namespace {

typedef float Vec __attribute__((vector_size(32)));

constexpr int kWidth = 8;
// Two accumulators a query; twelve of the sixteen registers, so that keys and a query value have room.
constexpr int kQueries = 6;

inline __attribute__((always_inline)) Vec Splat(float value) {
  return _mm256_set1_ps(value);
}

inline __attribute__((always_inline)) Vec MulAdd(Vec a, Vec b, Vec c) {
  return _mm256_fmadd_ps(a, b, c);
}

inline __attribute__((always_inline)) uint32_t AtLeast(Vec a, Vec b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
}

}  // namespace
}  // namespace mneme::scan

#include "index/scan/scan_widen_avx2.inc"

#include "index/scan/scan_kernel.inc"

namespace mneme::scan {

const Kernels kAvx2Kernels = {"avx2", &Scan, &Dot};

}  // namespace mneme::scan
