// SPDX-License-Identifier: Apache-2.0
// The code-scan kernels for any CPU, with 16-byte vectors, which compilers emulate where the CPU has none.

#include "base/inline.h"
#include "index/scan/code_scan_kernel.h"

namespace mneme::codes {
namespace {

typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));

constexpr int kWidth = 4;
constexpr int kParts = kBlockRows / kWidth;
constexpr int kGroupQueries = 1;
constexpr int kValueCopies = 1;
constexpr int64_t kPrefetchL1Bytes = 4096;
constexpr int64_t kPrefetchL2Bytes = kPrefetchL1Bytes;

inline Ints SplatInt(int32_t value) {
  return Ints{value, value, value, value};
}
inline Floats WidenScales(const uint16_t* scales) {
  return reinterpret_cast<Floats>(Ints{scales[0], scales[1], scales[2], scales[3]} << 16);
}
typedef Ints Mask;
constexpr Mask kEmptyMask = {};
inline Mask Reaches(Ints sums, Floats scales, float slope, float margin) {
  return ~(__builtin_convertvector(sums, Floats) < scales * slope - margin);
}
inline Mask Or(Mask a, Mask b) {
  return a | b;
}
inline uint32_t MaskBits(Mask mask) {
  return (mask[0] != 0 ? 1u : 0u) | (mask[1] != 0 ? 2u : 0u) | (mask[2] != 0 ? 4u : 0u) | (mask[3] != 0 ? 8u : 0u);
}
inline bool AnyLane(Mask mask) {
  return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
}

template <int kQ>
inline void DotBlock(const uint8_t* codes, int64_t dim, const int8_t* values, int64_t /*prefetch_l1*/,
                     int64_t /*prefetch_l2*/, Ints (&sums)[kQ][kParts]) {
  for (int q = 0; q < kQ; ++q) {
    int32_t dots[kBlockRows];
    __builtin_memcpy(dots, sums[q], sizeof(dots));
    for (int64_t d = 0; d < dim; d += 4) {
      const int8_t* four = values + (d / kTileDims * kQ + q) * kTileDims + d % kTileDims;
      const uint8_t* keys = codes + d * kBlockRows;
      for (int r = 0; r < kBlockRows; ++r) {
        dots[r] +=
            keys[4 * r] * four[0] + keys[4 * r + 1] * four[1] + keys[4 * r + 2] * four[2] + keys[4 * r + 3] * four[3];
      }
    }
    __builtin_memcpy(sums[q], dots, sizeof(dots));
  }
}

}  // namespace
}  // namespace mneme::codes

#include "index/scan/code_scan_kernel-inl.h"

namespace mneme::codes {

const Kernels kPlainKernels = {
    .name = "plain",
    .group_queries = kGroupQueries,
    .max_int16_sum = 0,
    .value_copies = kValueCopies,
    .scan = &Scan,
    .dot_means = &DotMeans,
};

}  // namespace mneme::codes
