// SPDX-License-Identifier: Apache-2.0
// The scan over codes for x86-64 CPUs with AVX2 and FMA. Compiled for them: nothing here may run unasked.

#include <immintrin.h>

#include "index/scan/code_kernel.h"

namespace mneme::codes {
namespace {

typedef __m256 Floats;
typedef __m256i Ints;

constexpr int kWidth = 8;
constexpr int kParts = kBlockRows / kWidth;
constexpr int kQueries = 8;
constexpr int kCopies = 8;

// The second-level cache has more room for lines on their way than the first: what is farther ahead goes there.
constexpr int64_t kNearBytes = 2048;
constexpr int64_t kFarBytes = 8192;

#define MNEME_INLINE inline __attribute__((always_inline))

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
typedef __m256 Marks;
const Marks kNone = _mm256_setzero_ps();
MNEME_INLINE Marks NotBelow(Ints sums, Floats scales, float factor, float term) {
  const Floats bound = _mm256_fmsub_ps(scales, _mm256_set1_ps(factor), _mm256_set1_ps(term));
  return _mm256_cmp_ps(_mm256_cvtepi32_ps(sums), bound, _CMP_NLT_UQ);
}
MNEME_INLINE Marks Or(Marks a, Marks b) {
  return _mm256_or_ps(a, b);
}
MNEME_INLINE uint32_t Bits(Marks marks) {
  return static_cast<uint32_t>(_mm256_movemask_ps(marks));
}
MNEME_INLINE bool Any(Marks marks) {
  return Bits(marks) != 0;
}

// Four pairs of products of a code and a value are summed in 16 bits before they are widened; the query's values are
// small enough for that (greatest_narrow_sum). One part of the block after the other: eight sums, four vectors of keys
// and what a step needs just fit sixteen registers.
template <int kQ>
MNEME_INLINE void DotBlock(const uint8_t* codes, int64_t dim, const int8_t* values, int64_t near, int64_t far,
                           Ints (&sums)[kQ][kParts]) {
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
        if (p == 0) _mm_prefetch(at + near + 64 * i, _MM_HINT_T0);
        if (p == 1) _mm_prefetch(at + far + 64 * i, _MM_HINT_T1);
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

#include "index/scan/code_kernel.inc"

namespace mneme::codes {

const Kernels kAvx2Kernels = {"avx2", kQueries, 32767 / 127, kCopies, &Scan, &Dots};

}  // namespace mneme::codes
