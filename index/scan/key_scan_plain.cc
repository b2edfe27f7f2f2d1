// SPDX-License-Identifier: Apache-2.0
// The key-scan kernels for any CPU, with vectors of four floats and no fused multiply-add.

#include "base/inline.h"
#include "index/scan/key_scan_kernel.h"

namespace mneme::key_scan {
namespace {

typedef float Vec __attribute__((vector_size(16)));
typedef uint32_t Bits __attribute__((vector_size(16)));

constexpr int kWidth = 4;
constexpr int kTile = 4;
constexpr int kGroupQueries = 2;
constexpr bool kHasDirectDot = false;

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

template <DType kDType>
inline Vec Load(const char* elements, int64_t i) {
  if constexpr (kDType == DType::kF32) {
    Vec values;
    __builtin_memcpy(&values, elements + 4 * i, sizeof(values));
    return values;
  } else if constexpr (kDType == DType::kBF16) {
    return reinterpret_cast<Vec>(Load16(elements, i) << 16);
  } else if constexpr (kDType == DType::kF16) {
    // Shifts the f16's exponent and fraction to where an f32 has them and multiplies by 2^112, the difference of the
    // exponents' biases: exact, subnormal numbers included. Infinity and NaN then get an f32's exponent of all ones.
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

template <DType kDType>
inline void TransposeTile(const char* const* rows, int64_t d, float* columns) {
  for (int r = 0; r < kTile; ++r) {
    const Vec values = Load<kDType>(rows[r], d);
    for (int i = 0; i < kTile; ++i) columns[i * kLanes + r] = values[i];
  }
}

}  // namespace
}  // namespace mneme::key_scan

#include "index/scan/key_scan_kernel-inl.h"

namespace mneme::key_scan {

const Kernels kPlainKernels = {.name = "plain", .scan = &Scan, .dot = &Dot};

}  // namespace mneme::key_scan
