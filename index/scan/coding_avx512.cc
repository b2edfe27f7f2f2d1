// SPDX-License-Identifier: Apache-2.0
// The kernels that make codes for x86-64 CPUs with AVX-512 F, BW, VL and DQ.

#include <immintrin.h>

#include "base/inline.h"
#include "index/scan/coding_kernel.h"

namespace mneme::codes {
namespace {

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));

MNEME_INLINE void Transpose(Floats* v) {
  // Interleaves pairs of rows, then fours, within each quarter of a vector: quarter q of four[i + j] holds dimension
  // 4 q + j of rows i to i + 3. Then swaps quarters.
  __m512 two[16], four[16];
  for (int i = 0; i < 16; i += 2) {
    two[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    two[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int k = 0; k < 2; ++k) {
      four[i + 2 * k] = _mm512_shuffle_ps(two[i + k], two[i + k + 2], 0x44);
      four[i + 2 * k + 1] = _mm512_shuffle_ps(two[i + k], two[i + k + 2], 0xee);
    }
  }
  for (int j = 0; j < 4; ++j) {
    const __m512 even_low = _mm512_shuffle_f32x4(four[j], four[j + 4], 0x88);
    const __m512 odd_low = _mm512_shuffle_f32x4(four[j], four[j + 4], 0xdd);
    const __m512 even_high = _mm512_shuffle_f32x4(four[j + 8], four[j + 12], 0x88);
    const __m512 odd_high = _mm512_shuffle_f32x4(four[j + 8], four[j + 12], 0xdd);
    v[j] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    v[j + 4] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    v[j + 8] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    v[j + 12] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}

}  // namespace
}  // namespace mneme::codes

#include "index/scan/coding_kernel-inl.h"

namespace mneme::codes {

const CodingKernels kAvx512CodingKernels = {
    .name = "avx512",
    .add_rows = &AddRows,
    .encode_block = &EncodeBlock,
    .rotate = &RotateVector,
};

}  // namespace mneme::codes
