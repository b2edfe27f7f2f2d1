// SPDX-License-Identifier: Apache-2.0
// The coder of blocks for x86-64 CPUs with AVX2. Compiled for them: nothing here may run unasked.

#include <immintrin.h>

#include "index/scan/block_coder.h"

namespace mneme::codes {
namespace {

#define MNEME_INLINE inline __attribute__((always_inline))

typedef float Floats __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));

MNEME_INLINE void Transpose(Floats* v) {
  // Pairs of rows, then fours, inside the halves of a vector; then the halves.
  __m256 two[8], four[8];
  for (int i = 0; i < 8; i += 2) {
    two[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    two[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int k = 0; k < 2; ++k) {
      four[i + 2 * k] = _mm256_shuffle_ps(two[i + k], two[i + k + 2], 0x44);
      four[i + 2 * k + 1] = _mm256_shuffle_ps(two[i + k], two[i + k + 2], 0xee);
    }
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_permute2f128_ps(four[i], four[i + 4], 0x20);
    v[i + 4] = _mm256_permute2f128_ps(four[i], four[i + 4], 0x31);
  }
}

#include "index/scan/block_coder.inc"

}  // namespace

const BlockCoder kAvx2Coder = {"avx2", &Add, &Code};

}  // namespace mneme::codes
