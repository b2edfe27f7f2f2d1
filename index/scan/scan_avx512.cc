// SPDX-License-Identifier: Apache-2.0
// The scan for x86-64 CPUs with AVX-512 F, BW, VL and DQ. Compiled for them: nothing here may run unasked.

#include <immintrin.h>

#include "index/scan/scan_kernel.h"

namespace mneme::scan {
namespace {

typedef float Vec __attribute__((vector_size(64)));

constexpr int kWidth = 16;
constexpr int kQueries = 8;

inline __attribute__((always_inline)) Vec Splat(float value) {
  return _mm512_set1_ps(value);
}

inline __attribute__((always_inline)) Vec MulAdd(Vec a, Vec b, Vec c) {
  return _mm512_fmadd_ps(a, b, c);
}

inline __attribute__((always_inline)) uint32_t AtLeast(Vec a, Vec b) {
  return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ);
}

}  // namespace
}  // namespace mneme::scan

#include "index/scan/scan_widen_avx2.inc"

#include "index/scan/scan_kernel.inc"

namespace mneme::scan {

const Kernels kAvx512Kernels = {"avx512", &Scan, &Dot};

}  // namespace mneme::scan
