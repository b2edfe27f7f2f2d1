// The scan for x86-64 CPUs with AVX2, FMA and F16C. Compiled for them: nothing here may run unasked.

#include <immintrin.h>

#include "index/scan_kernel.h"

namespace mneme::scan {
namespace {

typedef float Vec __attribute__((vector_size(32)));

constexpr int kWidth = 8;
// Two accumulators a query; twelve of the sixteen registers, so that keys and a query value have room.
constexpr int kQueries = 6;
constexpr int kBlocksOfOne = 4;
constexpr int kBlocksOfTwo = 2;
constexpr int kDirectQueries = 12;

inline __attribute__((always_inline)) Vec Splat(float value) {
  return _mm256_set1_ps(value);
}

inline __attribute__((always_inline)) Vec MulAdd(Vec a, Vec b, Vec c) {
  return _mm256_fmadd_ps(a, b, c);
}

inline __attribute__((always_inline)) uint32_t AtLeast(Vec a, Vec b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
}

template <Element kElement>
inline __attribute__((always_inline)) Vec Load(const char* elements, int64_t i) {
  if constexpr (kElement == kF32) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(elements) + i);
  } else if constexpr (kElement == kF16) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(elements + 2 * i)));
  } else if constexpr (kElement == kBF16) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(elements + 2 * i));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  } else {
    const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(elements + i));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
  }
}

}  // namespace
}  // namespace mneme::scan

#include "index/scan_kernel.inc"

namespace mneme::scan {

const Kernels kAvx2Kernels = {"avx2", &Scan, &Dot};

}  // namespace mneme::scan
