// SPDX-License-Identifier: Apache-2.0
// The kernels that make codes for x86-64 CPUs with AVX2.

#include <immintrin.h>

#include "base/inline.h"
#include "index/scan/coding_kernel.h"

namespace mneme::codes {
namespace {

typedef float Floats __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));

MNEME_INLINE void Transpose(Floats* v) {
  // Interleaves pairs of rows, then fours, within each half of a vector; then swaps halves.
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

}  // namespace
}  // namespace mneme::codes

#include "index/scan/coding_kernel-inl.h"

namespace mneme::codes {

const CodingKernels kAvx2CodingKernels = {
    .name = "avx2",
    .add_rows = &AddRows,
    .encode_block = &EncodeBlock,
    .rotate = &RotateVector,
};

}  // namespace mneme::codes
