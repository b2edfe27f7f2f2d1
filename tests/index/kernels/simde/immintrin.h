// Takes the place of the compiler's header: AVX-512 intrinsics by SIMDe, for CPUs that lack them.

#ifndef MNEME_TESTS_INDEX_KERNELS_SIMDE_IMMINTRIN_H_
#define MNEME_TESTS_INDEX_KERNELS_SIMDE_IMMINTRIN_H_

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#ifndef _mm512_cvtepi32_ps  // not in SIMDe 0.7.4
inline simde__m512 mneme_simde_cvtepi32_ps(simde__m512i a) {
  int32_t whole[16];
  float values[16];
  simde_mm512_storeu_si512(whole, a);
  for (int i = 0; i < 16; ++i) values[i] = static_cast<float>(whole[i]);
  return simde_mm512_loadu_ps(values);
}
#define _mm512_cvtepi32_ps(a) mneme_simde_cvtepi32_ps(a)
#endif

#endif  // MNEME_TESTS_INDEX_KERNELS_SIMDE_IMMINTRIN_H_
