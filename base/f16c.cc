// Compiled for CPUs with F16C and AVX: nothing here may run unasked, nor come from a header that others compile as well.

#include "base/f16c.h"

#include <immintrin.h>

namespace mneme {

size_t WidenF16c(const void* source, float* destination, size_t n) {
  const char* from = static_cast<const char*>(source);
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 2 * i));
    _mm256_storeu_ps(destination + i, _mm256_cvtph_ps(halves));
  }
  return i;
}

size_t NarrowF16c(const float* source, void* destination, size_t n) {
  char* to = static_cast<char*>(destination);
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(source + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * i), halves);
  }
  return i;
}

}  // namespace mneme
