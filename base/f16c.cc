// SPDX-License-Identifier: Apache-2.0
// Compiled for CPUs with F16C and AVX2, so the rules of docs/design/kernels.md apply: it is entered only after CpuHas,
// and calls no inline function of a shared header.

#include "base/f16c.h"

#include <immintrin.h>

namespace mneme {
namespace {

// The greatest magnitudes so far, as bits. Those of infinity and NaN are greater than those of every number.
class Greatest16 {
 public:
  void Add(__m256i bits) { most_ = _mm256_max_epu16(most_, _mm256_and_si256(bits, _mm256_set1_epi16(0x7fff))); }
  bool AllBelow(uint16_t infinity) const {
    const __m256i below = _mm256_cmpgt_epi16(_mm256_set1_epi16(static_cast<int16_t>(infinity)), most_);
    return _mm256_movemask_epi8(below) == -1;
  }

 private:
  __m256i most_ = _mm256_setzero_si256();
};

}  // namespace

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

bool NarrowFiniteF16c(const void* source, int64_t stride, size_t rows, size_t dim, void* encoded) {
  const char* row = static_cast<const char*>(source);
  char* to = static_cast<char*>(encoded);
  Greatest16 greatest;
  for (; rows > 0; --rows, row += stride, to += 2 * dim) {
    size_t i = 0;
    for (; i + 16 <= dim; i += 16) {
      const auto* from = reinterpret_cast<const float*>(row) + i;
      const __m128i low = _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT);
      const __m128i high = _mm256_cvtps_ph(_mm256_loadu_ps(from + 8), _MM_FROUND_TO_NEAREST_INT);
      const __m256i halves = _mm256_set_m128i(high, low);
      greatest.Add(halves);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 2 * i), halves);
    }
    if (i == dim) continue;
    alignas(32) float rest[16] = {};
    alignas(32) uint16_t halves[16];
    __builtin_memcpy(rest, row + 4 * i, 4 * (dim - i));
    const __m128i low = _mm256_cvtps_ph(_mm256_load_ps(rest), _MM_FROUND_TO_NEAREST_INT);
    const __m128i high = _mm256_cvtps_ph(_mm256_load_ps(rest + 8), _MM_FROUND_TO_NEAREST_INT);
    greatest.Add(_mm256_set_m128i(high, low));
    _mm256_store_si256(reinterpret_cast<__m256i*>(halves), _mm256_set_m128i(high, low));
    __builtin_memcpy(to + 2 * i, halves, 2 * (dim - i));
  }
  return greatest.AllBelow(0x7c00);
}

bool CopyFinite16(const void* source, int64_t stride, size_t rows, size_t dim, uint16_t infinity, void* encoded) {
  const char* row = static_cast<const char*>(source);
  char* to = static_cast<char*>(encoded);
  Greatest16 greatest;
  for (; rows > 0; --rows, row += stride, to += 2 * dim) {
    size_t i = 0;
    for (; i + 16 <= dim; i += 16) {
      const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 2 * i));
      greatest.Add(bits);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 2 * i), bits);
    }
    if (i == dim) continue;
    alignas(32) uint16_t rest[16] = {};
    __builtin_memcpy(rest, row + 2 * i, 2 * (dim - i));
    greatest.Add(_mm256_load_si256(reinterpret_cast<const __m256i*>(rest)));
    __builtin_memcpy(to + 2 * i, rest, 2 * (dim - i));
  }
  return greatest.AllBelow(infinity);
}

bool CopyFinite32(const void* source, int64_t stride, size_t rows, size_t dim, void* encoded) {
  const char* row = static_cast<const char*>(source);
  char* to = static_cast<char*>(encoded);
  __m256i most = _mm256_setzero_si256();
  const auto add = [&](__m256i bits) {
    most = _mm256_max_epi32(most, _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)));
  };
  for (; rows > 0; --rows, row += stride, to += 4 * dim) {
    size_t i = 0;
    for (; i + 8 <= dim; i += 8) {
      const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 4 * i));
      add(bits);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 4 * i), bits);
    }
    if (i == dim) continue;
    alignas(32) uint32_t rest[8] = {};
    __builtin_memcpy(rest, row + 4 * i, 4 * (dim - i));
    add(_mm256_load_si256(reinterpret_cast<const __m256i*>(rest)));
    __builtin_memcpy(to + 4 * i, rest, 4 * (dim - i));
  }
  return _mm256_movemask_epi8(_mm256_cmpgt_epi32(_mm256_set1_epi32(0x7f800000), most)) == -1;
}

}  // namespace mneme
