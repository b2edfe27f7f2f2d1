// SPDX-License-Identifier: Apache-2.0
// The code-scan kernels for x86-64 CPUs with AVX2 and FMA.

#include <immintrin.h>

#include "base/inline.h"
#include "index/scan/code_scan_kernel.h"

namespace mneme::codes {
namespace {

typedef __m256 Floats;
typedef __m256i Ints;

constexpr int kWidth = 8;
constexpr int kParts = kBlockRows / kWidth;
constexpr int kGroupQueries = 8;
constexpr int kValueCopies = 8;

// The second-level cache can wait for more lines at once than the first, so the greater distance goes there.
constexpr int64_t kPrefetchL1Bytes = 2048;
constexpr int64_t kPrefetchL2Bytes = 8192;

MNEME_INLINE Ints SplatInt(int32_t value) {
  return _mm256_set1_epi32(value);
}
MNEME_INLINE Ints LoadInts(const char* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
MNEME_INLINE Floats WidenScales(const uint16_t* scales) {
  const Ints wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
typedef __m256 Mask;
const Mask kEmptyMask = _mm256_setzero_ps();
MNEME_INLINE Mask Reaches(Ints sums, Floats scales, float slope, float margin) {
  const Floats bound = _mm256_fmsub_ps(scales, _mm256_set1_ps(slope), _mm256_set1_ps(margin));
  return _mm256_cmp_ps(_mm256_cvtepi32_ps(sums), bound, _CMP_NLT_UQ);
}
MNEME_INLINE Mask Or(Mask a, Mask b) {
  return _mm256_or_ps(a, b);
}
MNEME_INLINE uint32_t MaskBits(Mask mask) {
  return static_cast<uint32_t>(_mm256_movemask_ps(mask));
}
MNEME_INLINE bool AnyLane(Mask mask) {
  return MaskBits(mask) != 0;
}

// vpmaddubsw adds two products of a code and a value in 16 bits; four such pairs are added before they are widened to
// 32 bits. max_int16_sum keeps the query's values small enough for that. The block's two halves are taken one after the
// other, because eight sums, four vectors of keys and the temporaries just fit sixteen registers.
template <int kQ>
MNEME_INLINE void DotBlock(const uint8_t* codes, int64_t dim, const int8_t* values, int64_t prefetch_l1,
                           int64_t prefetch_l2, Ints (&sums)[kQ][kParts]) {
  const Ints ones = _mm256_set1_epi16(1);
#pragma GCC unroll 2
  for (int p = 0; p < kParts; ++p) {
    Ints own[kQ];
    for (int q = 0; q < kQ; ++q) own[q] = sums[q][p];
    const char* four = reinterpret_cast<const char*>(values);
    for (int64_t d = 0; d < dim; d += kTileDims) {
      const char* at = reinterpret_cast<const char*>(codes + d * kBlockRows) + p * 32;
      Ints keys[4];
      for (int i = 0; i < 4; ++i) {
        keys[i] = LoadInts(at + 64 * i);
        if (p == 0) _mm_prefetch(at + prefetch_l1 + 64 * i, _MM_HINT_T0);
        if (p == 1) _mm_prefetch(at + prefetch_l2 + 64 * i, _MM_HINT_T1);
      }
      for (int q = 0; q < kQ; ++q, four += 128) {
        Ints pairs = _mm256_maddubs_epi16(keys[0], LoadInts(four));
        for (int i = 1; i < 4; ++i) {
          pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(keys[i], LoadInts(four + 32 * i)));
        }
        own[q] = _mm256_add_epi32(own[q], _mm256_madd_epi16(pairs, ones));
      }
    }
    for (int q = 0; q < kQ; ++q) sums[q][p] = own[q];
  }
}

}  // namespace
}  // namespace mneme::codes

#include "index/scan/code_scan_kernel-inl.h"

namespace mneme::codes {

const Kernels kAvx2Kernels = {
    .name = "avx2",
    .group_queries = kGroupQueries,
    .max_int16_sum = 32767 / 127,
    .value_copies = kValueCopies,
    .scan = &Scan,
    .dot_means = &DotMeans,
};

}  // namespace mneme::codes
