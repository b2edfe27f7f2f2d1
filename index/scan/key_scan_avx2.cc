// SPDX-License-Identifier: Apache-2.0
// The key-scan kernels for x86-64 CPUs with AVX2, FMA and F16C.

#include <immintrin.h>

#include "base/inline.h"
#include "index/scan/key_scan_kernel.h"

namespace mneme::key_scan {
namespace {

typedef float Vec __attribute__((vector_size(32)));

constexpr int kWidth = 8;
// Each query has two accumulators. Twelve of the sixteen registers hold them; keys and a query value use the rest.
constexpr int kGroupQueries = 6;

MNEME_INLINE Vec Splat(float value) {
  return _mm256_set1_ps(value);
}

MNEME_INLINE Vec MulAdd(Vec a, Vec b, Vec c) {
  return _mm256_fmadd_ps(a, b, c);
}

MNEME_INLINE uint32_t AtLeast(Vec a, Vec b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
}

}  // namespace
}  // namespace mneme::key_scan

#include "index/scan/transpose_avx2-inl.h"

#include "index/scan/key_scan_kernel-inl.h"

namespace mneme::key_scan {

const Kernels kAvx2Kernels = {.name = "avx2", .scan = &Scan, .dot = &Dot};

}  // namespace mneme::key_scan
