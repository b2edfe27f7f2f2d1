// SPDX-License-Identifier: Apache-2.0
// The key-scan kernels for x86-64 CPUs with AVX-512 F, BW, VL and DQ.

#include <immintrin.h>

#include "base/inline.h"
#include "index/scan/key_scan_kernel.h"

namespace mneme::key_scan {
namespace {

typedef float Vec __attribute__((vector_size(64)));

constexpr int kWidth = 16;
constexpr int kGroupQueries = 8;

MNEME_INLINE Vec Splat(float value) {
  return _mm512_set1_ps(value);
}

MNEME_INLINE Vec MulAdd(Vec a, Vec b, Vec c) {
  return _mm512_fmadd_ps(a, b, c);
}

MNEME_INLINE uint32_t AtLeast(Vec a, Vec b) {
  return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ);
}

}  // namespace
}  // namespace mneme::key_scan

#include "index/scan/transpose_avx2-inl.h"

#include "index/scan/key_scan_kernel-inl.h"

namespace mneme::key_scan {

const Kernels kAvx512Kernels = {.name = "avx512", .scan = &Scan, .dot = &Dot};

}  // namespace mneme::key_scan
