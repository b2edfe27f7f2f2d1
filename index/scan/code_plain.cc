// SPDX-License-Identifier: Apache-2.0
// The scan over codes for any CPU: vectors of four, which every compiler knows how to make.

#include "index/scan/code_kernel.h"

namespace mneme::codes {
namespace {

typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));

constexpr int kWidth = 4;
constexpr int kParts = kBlockRows / kWidth;
constexpr int kQueries = 1;
constexpr int kCopies = 1;
constexpr int64_t kNearBytes = 4096;
constexpr int64_t kFarBytes = kNearBytes;

#define MNEME_INLINE inline __attribute__((always_inline))

inline Ints SplatInt(int32_t value) {
  return Ints{value, value, value, value};
}
inline Floats WidenScales(const uint16_t* scales) {
  return reinterpret_cast<Floats>(Ints{scales[0], scales[1], scales[2], scales[3]} << 16);
}
typedef Ints Marks;
constexpr Marks kNone = {};
inline Marks NotBelow(Ints sums, Floats scales, float factor, float term) {
  return ~(__builtin_convertvector(sums, Floats) < scales * factor - term);
}
inline Marks Or(Marks a, Marks b) {
  return a | b;
}
inline uint32_t Bits(Marks marks) {
  return (marks[0] != 0 ? 1u : 0u) | (marks[1] != 0 ? 2u : 0u) | (marks[2] != 0 ? 4u : 0u) | (marks[3] != 0 ? 8u : 0u);
}
inline bool Any(Marks marks) {
  return (marks[0] | marks[1] | marks[2] | marks[3]) != 0;
}

template <int kQ>
inline void DotBlock(const uint8_t* codes, int64_t dim, const int8_t* values, int64_t /*near*/, int64_t /*far*/,
                     Ints (&sums)[kQ][kParts]) {
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

#include "index/scan/code_kernel.inc"

namespace mneme::codes {

const Kernels kPlainKernels = {"plain", kQueries, 0, kCopies, &Scan, &Dots};

}  // namespace mneme::codes
