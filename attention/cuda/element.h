// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_ELEMENT_H_
#define MNEME_ATTENTION_CUDA_ELEMENT_H_

#include "attention/cuda/host_device.h"
#include "base/dtype_enum.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace mneme::cuda {

// DType::kI8 is for rows of a memory only: signed bytes, with their f32 scales in an array of their own.
MNEME_HOST_DEVICE int64_t ElementBytes(DType type) {
  return type == DType::kF32 ? 4 : type == DType::kI8 ? 1 : 2;
}

// Conversions of single values, rounded to nearest even. The host's versions give the device's bits.

MNEME_HOST_DEVICE float F16ToF32(uint16_t bits) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(bits));
#else
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = bits >> 10 & 0x1Fu;
  const uint32_t fraction = bits & 0x3FFu;
  if (exponent == 0x1Fu) return FloatOf(sign | 0x7F800000u | fraction << 13);
  if (exponent != 0) return FloatOf(sign | (exponent + 112) << 23 | fraction << 13);
  const float tiny = static_cast<float>(fraction) * FloatOf(0x33800000u);  // 2^-24
  return FloatOf(sign | BitsOf(tiny));
#endif
}

MNEME_HOST_DEVICE uint16_t F32ToF16(float value) {
#if defined(__CUDA_ARCH__)
  return __half_as_ushort(__float2half_rn(value));
#else
  const uint32_t sign = BitsOf(value) >> 16 & 0x8000u;
  const uint32_t bits = BitsOf(value) & 0x7FFFFFFFu;
  if (bits > 0x7F800000u) return static_cast<uint16_t>(0x7FFFu);
  if (bits >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);
  if (bits < 0x38800000u) {
    // Adding 2^-1 puts the last bit of a subnormal f16, 2^-24, at the end of the sum, which rounds it.
    return static_cast<uint16_t>(sign | (BitsOf(FloatOf(bits) + 0.5f) - 0x3F000000u));
  }
  return static_cast<uint16_t>(sign | (bits - 0x38000000u + 0xFFFu + (bits >> 13 & 1u)) >> 13);
#endif
}

MNEME_HOST_DEVICE float BF16ToF32(uint16_t bits) {
  return FloatOf(static_cast<uint32_t>(bits) << 16);
}

MNEME_HOST_DEVICE uint16_t F32ToBF16(float value) {
  const uint32_t bits = BitsOf(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

// Requires: `type` is a 16-bit type.
MNEME_HOST_DEVICE float Widen(DType type, uint16_t bits) {
  return type == DType::kF16 ? F16ToF32(bits) : BF16ToF32(bits);
}
MNEME_HOST_DEVICE uint16_t Narrow(DType type, float value) {
  return type == DType::kF16 ? F32ToF16(value) : F32ToBF16(value);
}

// Element `index` of an array of f32, f16 or bf16.
MNEME_HOST_DEVICE void StoreElement(DType type, void* data, int64_t index, float value) {
  if (type == DType::kF32) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<uint16_t*>(data)[index] = Narrow(type, value);
  }
}
MNEME_HOST_DEVICE float LoadElement(DType type, const void* data, int64_t index) {
  if (type == DType::kF32) return static_cast<const float*>(data)[index];
  return Widen(type, static_cast<const uint16_t*>(data)[index]);
}

// Rows in the form that tensor cores take: pairs of 16-bit elements.

enum class Product { kF16, kBF16 };  // element type of a tensor-core product; sums are f32

// Subtracts 1152 from two f16 numbers 1024 + u with u = byte + 128. The results are the signed bytes, exactly.
MNEME_HOST_DEVICE uint32_t Subtract1152(uint32_t pair) {
#if defined(__CUDA_ARCH__)
  const uint32_t offset = 0x64806480u;
  __half2 a, b;
  memcpy(&a, &pair, sizeof(a));
  memcpy(&b, &offset, sizeof(b));
  a = __hsub2(a, b);
  uint32_t result;
  memcpy(&result, &a, sizeof(result));
  return result;
#else
  const uint32_t low = F32ToF16(F16ToF32(static_cast<uint16_t>(pair)) - 1152.0f);
  const uint32_t high = F32ToF16(F16ToF32(static_cast<uint16_t>(pair >> 16)) - 1152.0f);
  return low | high << 16;
#endif
}

// The types of rows that a kernel reads.
//   kProduct   the element type of the product
//   kPerLoad   elements in 16 bytes
//   Unpack     converts 16 bytes to kPerLoad / 2 pairs, in order
struct F16Rows {
  static constexpr DType kType = DType::kF16;
  static constexpr Product kProduct = Product::kF16;
  static constexpr int kPerLoad = 8;
  MNEME_DEVICE static void Unpack(const Vec16& loaded, uint32_t (&pairs)[4]) {
    MNEME_UNROLL
    for (int i = 0; i < 4; ++i) pairs[i] = loaded.x[i];
  }
};

struct BF16Rows {
  static constexpr DType kType = DType::kBF16;
  static constexpr Product kProduct = Product::kBF16;
  static constexpr int kPerLoad = 8;
  MNEME_DEVICE static void Unpack(const Vec16& loaded, uint32_t (&pairs)[4]) { F16Rows::Unpack(loaded, pairs); }
};

struct I8Rows {
  static constexpr DType kType = DType::kI8;
  static constexpr Product kProduct = Product::kF16;  // holds every byte exactly
  static constexpr int kPerLoad = 16;
  MNEME_DEVICE static void Unpack(const Vec16& loaded, uint32_t (&pairs)[8]) {
    MNEME_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint32_t u = loaded.x[i] ^ 0x80808080u;
      pairs[2 * i] = Subtract1152((u & 0xFFu) | (u & 0xFF00u) << 8 | 0x64006400u);
      pairs[2 * i + 1] = Subtract1152((u >> 16 & 0xFFu) | (u >> 24) << 16 | 0x64006400u);
    }
  }
};

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_ELEMENT_H_
