// SPDX-License-Identifier: Apache-2.0
// The scan for any CPU: vectors of four floats, no fused multiply-add.

#include "index/scan/scan_kernel.h"

namespace mneme::scan {
namespace {

typedef float Vec __attribute__((vector_size(16)));
typedef uint32_t Bits __attribute__((vector_size(16)));

constexpr int kWidth = 4;
constexpr int kTile = 4;
constexpr int kQueries = 2;
constexpr bool kDotsAsTurned = false;

inline Vec Splat(float value) {
  return Vec{value, value, value, value};
}

inline Vec MulAdd(Vec a, Vec b, Vec c) {
  return a * b + c;
}

inline uint32_t AtLeast(Vec a, Vec b) {
  uint32_t bits = 0;
  for (int i = 0; i < kWidth; ++i) bits |= static_cast<uint32_t>(a[i] >= b[i]) << i;
  return bits;
}

inline Bits Load16(const char* elements, int64_t i) {
  uint16_t half[kWidth];
  __builtin_memcpy(half, elements + 2 * i, sizeof(half));
  return Bits{half[0], half[1], half[2], half[3]};
}

template <Element kElement>
inline Vec Load(const char* elements, int64_t i) {
  if constexpr (kElement == kF32) {
    Vec values;
    __builtin_memcpy(&values, elements + 4 * i, sizeof(values));
    return values;
  } else if constexpr (kElement == kBF16) {
    return reinterpret_cast<Vec>(Load16(elements, i) << 16);
  } else if constexpr (kElement == kF16) {
    // The f16's exponent and fraction as those of an f32, times 2^112 to correct the bias: exact, subnormals
    // included. An exponent of all ones becomes that of an f32 afterwards.
    const Bits half = Load16(elements, i);
    const Bits magnitude = half & 0x7fffu;
    const Vec scaled = reinterpret_cast<Vec>(magnitude << 13) * Splat(0x1p112f);
    const Bits special = reinterpret_cast<Bits>(magnitude >= 0x7c00u) & 0x7f800000u;
    return reinterpret_cast<Vec>(reinterpret_cast<Bits>(scaled) | special | (half & 0x8000u) << 16);
  } else {
    int8_t code[kWidth];
    __builtin_memcpy(code, elements + i, sizeof(code));
    return Vec{static_cast<float>(code[0]), static_cast<float>(code[1]), static_cast<float>(code[2]),
               static_cast<float>(code[3])};
  }
}

template <Element kElement>
inline void WidenTile(const char* const* rows, int64_t d, float* lanes) {
  for (int r = 0; r < kTile; ++r) {
    const Vec values = Load<kElement>(rows[r], d);
    for (int i = 0; i < kTile; ++i) lanes[i * kLanes + r] = values[i];
  }
}

}  // namespace
}  // namespace mneme::scan

#include "index/scan/scan_kernel.inc"

namespace mneme::scan {

const Kernels kPlainKernels = {"plain", &Scan, &Dot};

}  // namespace mneme::scan
