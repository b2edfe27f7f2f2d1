// SPDX-License-Identifier: Apache-2.0
// The code-scan kernels for x86-64 CPUs with AVX-512 F, BW, VL, DQ and VNNI.

#include <immintrin.h>

#include "base/inline.h"
#include "index/scan/code_scan_kernel.h"

namespace mneme::codes {
namespace {

typedef __m512 Floats;
typedef __m512i Ints;

constexpr int kWidth = 16;
constexpr int kParts = kBlockRows / kWidth;
constexpr int kGroupQueries = 8;
constexpr int kValueCopies = 1;

constexpr int64_t kPrefetchL1Bytes = 4096;
constexpr int64_t kPrefetchL2Bytes = kPrefetchL1Bytes;

MNEME_INLINE Ints SplatInt(int32_t value) {
  return _mm512_set1_epi32(value);
}
MNEME_INLINE Ints LoadInts(const char* from) {
  return _mm512_loadu_si512(from);
}
MNEME_INLINE Floats WidenScales(const uint16_t* scales) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
typedef uint16_t Mask;
constexpr Mask kEmptyMask = 0;
MNEME_INLINE Mask Reaches(Ints sums, Floats scales, float slope, float margin) {
  const Floats bound = _mm512_fmsub_ps(scales, _mm512_set1_ps(slope), _mm512_set1_ps(margin));
  return _mm512_cmp_ps_mask(_mm512_cvtepi32_ps(sums), bound, _CMP_NLT_UQ);
}
MNEME_INLINE Mask Or(Mask a, Mask b) {
  return static_cast<Mask>(a | b);
}
MNEME_INLINE uint32_t MaskBits(Mask mask) {
  return mask;
}
MNEME_INLINE bool AnyLane(Mask mask) {
  return mask != 0;
}

MNEME_INLINE Ints FourValues(const int8_t* values) {
  int32_t four;
  __builtin_memcpy(&four, values, sizeof(four));
  return _mm512_set1_epi32(four);
}

// vpdpbusd adds four products of a code and a value to the sum of each of 16 rows. Each query has two chains of sums,
// to hide the instruction's latency when there are few queries.
template <int kQ>
MNEME_INLINE void DotBlock(const uint8_t* codes, int64_t dim, const int8_t* values, int64_t prefetch_l1,
                           int64_t /*prefetch_l2*/, Ints (&sums)[kQ][kParts]) {
  Ints more[kQ];
  for (int q = 0; q < kQ; ++q) more[q] = _mm512_setzero_si512();
  for (int64_t d = 0; d < dim; d += kTileDims, values += kTileDims * kQ) {
    const char* at = reinterpret_cast<const char*>(codes + d * kBlockRows);
    Ints keys[4];
    for (int i = 0; i < 4; ++i) {
      keys[i] = LoadInts(at + 64 * i);
      _mm_prefetch(at + prefetch_l1 + 64 * i, _MM_HINT_T0);
    }
    for (int q = 0; q < kQ; ++q) {
      const int8_t* own = values + kTileDims * q;
      sums[q][0] = _mm512_dpbusd_epi32(sums[q][0], keys[0], FourValues(own));
      more[q] = _mm512_dpbusd_epi32(more[q], keys[1], FourValues(own + 4));
      sums[q][0] = _mm512_dpbusd_epi32(sums[q][0], keys[2], FourValues(own + 8));
      more[q] = _mm512_dpbusd_epi32(more[q], keys[3], FourValues(own + 12));
    }
  }
  for (int q = 0; q < kQ; ++q) sums[q][0] = _mm512_add_epi32(sums[q][0], more[q]);
}

}  // namespace
}  // namespace mneme::codes

#include "index/scan/code_scan_kernel-inl.h"

namespace mneme::codes {

const Kernels kAvx512VnniKernels = {
    .name = "avx512vnni",
    .group_queries = kGroupQueries,
    .max_int16_sum = 0,
    .value_copies = kValueCopies,
    .scan = &Scan,
    .dot_means = &DotMeans,
};

}  // namespace mneme::codes
