// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BENCH_MICRO_DOT_PRODUCT_PEAK_H_
#define MNEME_BENCH_MICRO_DOT_PRODUCT_PEAK_H_

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mneme {

inline constexpr size_t kPeakBytes = 8 << 10;  // fit the first-level cache beside anything

#if defined(__x86_64__)
// Sums of products of bytes below 2^7, as AVX2 makes them in 32 bits with the least instructions: two products, then
// four such sums in 16 bits, widened once.
__attribute__((target("avx2"))) inline int32_t SumProductsAvx2(const uint8_t* keys, const int8_t* query) {
  const __m256i ones = _mm256_set1_epi16(1);
  const __m256i q = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(query));
  __m256i sums[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
  for (size_t i = 0; i < kPeakBytes; i += 512) {
    for (size_t s = 0; s < 4; ++s) {
      const auto* from = reinterpret_cast<const __m256i*>(keys + i + s * 128);
      const __m256i a = _mm256_add_epi16(_mm256_maddubs_epi16(_mm256_load_si256(from), q),
                                         _mm256_maddubs_epi16(_mm256_load_si256(from + 1), q));
      const __m256i b = _mm256_add_epi16(_mm256_maddubs_epi16(_mm256_load_si256(from + 2), q),
                                         _mm256_maddubs_epi16(_mm256_load_si256(from + 3), q));
      sums[s] = _mm256_add_epi32(sums[s], _mm256_madd_epi16(_mm256_add_epi16(a, b), ones));
    }
  }
  const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(sums[0], sums[1]), _mm256_add_epi32(sums[2], sums[3]));
  return _mm256_extract_epi32(sum, 0) + _mm256_extract_epi32(sum, 7);
}

// With VNNI one instruction does it all.
__attribute__((target("avx512f,avx512vnni"))) inline int32_t SumProductsVnni(const uint8_t* keys, const int8_t* query) {
  const __m512i q = _mm512_loadu_si512(query);
  __m512i sums[8];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  for (size_t i = 0; i < kPeakBytes; i += 512) {
    for (size_t s = 0; s < 8; ++s) sums[s] = _mm512_dpbusd_epi32(sums[s], _mm512_load_si512(keys + i + s * 64), q);
  }
  for (size_t s = 1; s < 8; ++s) sums[0] = _mm512_add_epi32(sums[0], sums[s]);
  alignas(64) int32_t lanes[16];
  _mm512_store_si512(lanes, sums[0]);
  return lanes[0] + lanes[15];  // some of the result, so that none of it is left out
}
#endif

// Products of bytes a second that one core multiplies and sums when all lies in its first-level cache: the best of some
// milliseconds. 0: not known how on this processor.
inline double DotProductPeak() {
  int32_t (*sum)(const uint8_t*, const int8_t*) = nullptr;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) sum = &SumProductsAvx2;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni")) sum = &SumProductsVnni;
#endif
  if (sum == nullptr) return 0;
  alignas(64) uint8_t keys[kPeakBytes];
  alignas(64) int8_t query[64];
  std::fill_n(keys, kPeakBytes, uint8_t{3});
  std::fill_n(query, sizeof(query), int8_t{-2});
  constexpr int kTimes = 100, kRounds = 20;
  double best = 0;
  volatile int32_t keep = 0;
  for (int round = 0; round < kRounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kTimes; ++i) {
      keep = sum(keys, query);
      asm volatile("" ::: "memory");
    }
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(kTimes) * kPeakBytes / time.count());
  }
  (void)keep;
  return best;
}

}  // namespace mneme

#endif  // MNEME_BENCH_MICRO_DOT_PRODUCT_PEAK_H_
