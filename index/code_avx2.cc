// The scan over codes for x86-64 CPUs with AVX2 and FMA. Compiled for them: nothing here may run unasked.

#include <immintrin.h>

#include "index/code_kernel.h"

namespace mneme::codes {
namespace {

typedef __m256 Floats;
typedef __m256i Ints;

constexpr int kWidth = 8;
constexpr int kParts = kBlockRows / kWidth;
constexpr int kQueries = 4;

// How far ahead of its use a block is asked for, beyond what the CPU's own prefetching does.
constexpr int64_t kPrefetchBytes = 4096;

#define MNEME_INLINE inline __attribute__((always_inline))

MNEME_INLINE Ints SplatInt(int32_t value) { return _mm256_set1_epi32(value); }
MNEME_INLINE Ints LoadInts(const char* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
MNEME_INLINE Floats WidenScales(const uint16_t* scales) {
  const Ints wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
MNEME_INLINE uint32_t NotBelow(Ints sums, Floats scales, float factor, float term) {
  const Floats bound = _mm256_fmsub_ps(scales, _mm256_set1_ps(factor), _mm256_set1_ps(term));
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(_mm256_cvtepi32_ps(sums), bound, _CMP_NLT_UQ)));
}

MNEME_INLINE Ints FourValues(const int8_t* values) {
  int32_t four;
  __builtin_memcpy(&four, values, sizeof(four));
  return _mm256_set1_epi32(four);
}

// Two products of a code (at most 127) and a value (within ± 64) fill half the range of 16 bits, so two pairs of them are
// summed there before they are widened. One part after the other: eight sums, two vectors of keys and what a step needs
// just fit sixteen registers.
template <int kQ>
MNEME_INLINE void DotBlock(const uint8_t* codes, int64_t dim, const int8_t* values, Ints (&sums)[kQ][kParts]) {
  const Ints ones = _mm256_set1_epi16(1);
  for (int64_t d = 0; d < dim; d += 8, values += 8 * kQ) {
    const char* at = reinterpret_cast<const char*>(codes + d * kBlockRows);
    _mm_prefetch(at + kPrefetchBytes, _MM_HINT_T0);
    _mm_prefetch(at + kPrefetchBytes + 64, _MM_HINT_T0);
    for (int p = 0; p < kParts; ++p) {
      const Ints first = LoadInts(at + p * 32), second = LoadInts(at + 64 + p * 32);
      for (int q = 0; q < kQ; ++q) {
        const Ints pairs = _mm256_add_epi16(_mm256_maddubs_epi16(first, FourValues(values + 8 * q)),
                                            _mm256_maddubs_epi16(second, FourValues(values + 8 * q + 4)));
        sums[q][p] = _mm256_add_epi32(sums[q][p], _mm256_madd_epi16(pairs, ones));
      }
      // Or the compiler keeps all broadcasts for the second part, and spills sums instead.
      asm volatile("");
    }
  }
}

}  // namespace
}  // namespace mneme::codes

#include "index/code_kernel.inc"

namespace mneme::codes {

const Kernels kAvx2Kernels = {"avx2", 64, kQueries, &Scan};

}  // namespace mneme::codes
