// The scan for x86-64 CPUs with AVX-512 F, BW, VL and DQ. Compiled for them: nothing here may run unasked.

#include <immintrin.h>

#include "index/scan_kernel.h"

namespace mneme::scan {
namespace {

typedef float Vec __attribute__((vector_size(64)));

constexpr int kWidth = 16;
constexpr int kQueries = 8;
constexpr int kBlocksOfOne = 8;
constexpr int kBlocksOfTwo = 4;
constexpr int kDirectQueries = 16;

inline __attribute__((always_inline)) Vec Splat(float value) {
  return _mm512_set1_ps(value);
}

inline __attribute__((always_inline)) Vec MulAdd(Vec a, Vec b, Vec c) {
  return _mm512_fmadd_ps(a, b, c);
}

inline __attribute__((always_inline)) uint32_t AtLeast(Vec a, Vec b) {
  return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ);
}

template <Element kElement>
inline __attribute__((always_inline)) Vec Load(const char* elements, int64_t i) {
  if constexpr (kElement == kF32) {
    return _mm512_loadu_ps(elements + 4 * i);
  } else if constexpr (kElement == kF16) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(elements + 2 * i)));
  } else if constexpr (kElement == kBF16) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(elements + 2 * i));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  } else {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(elements + i));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
  }
}

}  // namespace
}  // namespace mneme::scan

#include "index/scan_kernel.inc"

namespace mneme::scan {

const Kernels kAvx512Kernels = {"avx512", &Scan, &Dot};

}  // namespace mneme::scan
