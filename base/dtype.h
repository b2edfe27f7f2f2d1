// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_DTYPE_H_
#define MNEME_BASE_DTYPE_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "absl/strings/string_view.h"

#include "base/dtype_enum.h"

namespace mneme {

inline constexpr int kDTypeCount = 4;

absl::string_view DTypeName(DType dtype);

// Bytes of one element. For kI8 the row's scale is not included; see RowBytes.
inline constexpr size_t DTypeSize(DType dtype) {
  constexpr uint8_t kSizes[kDTypeCount] = {4, 2, 2, 1};
  return kSizes[static_cast<size_t>(dtype)];
}

// Bytes of one stored row of `dim` elements: dim * DTypeSize, and for kI8 four more for the scale,
// which follows the elements (so rows of kI8 are unaligned; read the scale with memcpy).
inline constexpr size_t RowBytes(DType dtype, int64_t dim) {
  return static_cast<size_t>(dim) * DTypeSize(dtype) + (dtype == DType::kI8 ? sizeof(float) : 0);
}

// Single-value conversions, bit exact, round to nearest even; NaN stays NaN, overflow gives infinity.
float F16ToF32(uint16_t bits);
uint16_t F32ToF16(float value);

inline float BF16ToF32(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}
uint16_t F32ToBF16(float value);

// Converts n contiguous elements between f32 and `dtype`. Requires: not kI8, whose elements need their row's scale.
void ConvertToF32(DType dtype, const void* source, float* destination, size_t n);
void ConvertFromF32(const float* source, DType dtype, void* destination, size_t n);

// Encodes or decodes one stored row of `dim` elements; `row` has RowBytes(dtype, dim) bytes.
// kI8: scale = max|x| / 127, element = round(x / scale), all zero rows have scale 0.
void EncodeRow(const float* source, DType dtype, void* row, int64_t dim);
void DecodeRow(DType dtype, const void* row, float* destination, int64_t dim);

// Whether all n elements are finite (neither NaN nor infinite). Requires: not kI8.
bool AllFinite(DType dtype, const void* data, size_t n);

// Encodes `rows` rows of `dim` elements of type `from`, which lie `stride` bytes apart, as contiguous rows of type
// `to`. Returns: whether all elements are finite, both as given and as stored; if not, `encoded` means nothing.
// Requires: neither type is kI8.
bool EncodeFinite(DType from, const void* source, int64_t stride, int64_t rows, int64_t dim, DType to, void* encoded);

}  // namespace mneme

#endif  // MNEME_BASE_DTYPE_H_
