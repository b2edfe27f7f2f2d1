// SPDX-License-Identifier: Apache-2.0
// Takes the place of the compiler's header: AVX-512 intrinsics by SIMDe, for CPUs that lack them.

#ifndef MNEME_TESTS_INDEX_KERNELS_SIMDE_IMMINTRIN_H_
#define MNEME_TESTS_INDEX_KERNELS_SIMDE_IMMINTRIN_H_

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

// Not in SIMDe 0.7.4:

#ifndef _mm512_cvtepi32_ps
inline simde__m512 mneme_simde_cvtepi32_ps(simde__m512i a) {
  int32_t whole[16];
  float values[16];
  simde_mm512_storeu_si512(whole, a);
  for (int i = 0; i < 16; ++i) values[i] = static_cast<float>(whole[i]);
  return simde_mm512_loadu_ps(values);
}
#define _mm512_cvtepi32_ps(a) mneme_simde_cvtepi32_ps(a)
#endif

#ifndef _mm512_cvtepu16_epi32
inline simde__m512i mneme_simde_cvtepu16_epi32(simde__m256i a) {
  uint16_t narrow[16];
  int32_t wide[16];
  simde_mm256_storeu_si256(reinterpret_cast<simde__m256i*>(narrow), a);
  for (int i = 0; i < 16; ++i) wide[i] = narrow[i];
  return simde_mm512_loadu_si512(wide);
}
#define _mm512_cvtepu16_epi32(a) mneme_simde_cvtepu16_epi32(a)
#endif

#endif  // MNEME_TESTS_INDEX_KERNELS_SIMDE_IMMINTRIN_H_
