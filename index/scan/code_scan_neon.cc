// SPDX-License-Identifier: Apache-2.0
// The code-scan kernels for AArch64 CPUs with the dot-product instructions.

#include <arm_neon.h>

#include "base/inline.h"
#include "index/scan/code_scan_kernel.h"

namespace mneme::codes {
namespace {

typedef float32x4_t Floats;
typedef int32x4_t Ints;

constexpr int kWidth = 4;
constexpr int kParts = kBlockRows / kWidth;
constexpr int kGroupQueries = 4;
constexpr int kValueCopies = 1;
constexpr int64_t kPrefetchL1Bytes = 4096;
constexpr int64_t kPrefetchL2Bytes = kPrefetchL1Bytes;

MNEME_INLINE Ints SplatInt(int32_t value) {
  return vdupq_n_s32(value);
}
MNEME_INLINE Floats WidenScales(const uint16_t* scales) {
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(scales), 16));
}
typedef uint32x4_t Mask;
const Mask kEmptyMask = {};
MNEME_INLINE Mask Reaches(Ints sums, Floats scales, float slope, float margin) {
  const Floats bound = vsubq_f32(vmulq_n_f32(scales, slope), vdupq_n_f32(margin));
  return vmvnq_u32(vcltq_f32(vcvtq_f32_s32(sums), bound));
}
MNEME_INLINE Mask Or(Mask a, Mask b) {
  return vorrq_u32(a, b);
}
MNEME_INLINE uint32_t MaskBits(Mask mask) {
  const uint32x4_t bit = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(mask, bit));
}
MNEME_INLINE bool AnyLane(Mask mask) {
  return vmaxvq_u32(mask) != 0;
}

// sdot takes signed bytes on both sides. Codes are below 128, so they are the same number signed or unsigned.
template <int kQ>
MNEME_INLINE void DotBlock(const uint8_t* codes, int64_t dim, const int8_t* values, int64_t /*prefetch_l1*/,
                           int64_t /*prefetch_l2*/, Ints (&sums)[kQ][kParts]) {
  for (int64_t d = 0; d < dim; d += 4) {
    const auto* at = reinterpret_cast<const int8_t*>(codes + d * kBlockRows);
    int8x16_t keys[kParts];
    for (int p = 0; p < kParts; ++p) keys[p] = vld1q_s8(at + p * 16);
    for (int q = 0; q < kQ; ++q) {
      int32_t four;
      __builtin_memcpy(&four, values + (d / kTileDims * kQ + q) * kTileDims + d % kTileDims, sizeof(four));
      const int8x16_t query = vreinterpretq_s8_s32(vdupq_n_s32(four));
      for (int p = 0; p < kParts; ++p) sums[q][p] = vdotq_s32(sums[q][p], keys[p], query);
    }
  }
}

}  // namespace
}  // namespace mneme::codes

#include "index/scan/code_scan_kernel-inl.h"

namespace mneme::codes {

const Kernels kNeonKernels = {
    .name = "neon",
    .group_queries = kGroupQueries,
    .max_int16_sum = 0,
    .value_copies = kValueCopies,
    .scan = &Scan,
    .dot_means = &DotMeans,
};

}  // namespace mneme::codes
