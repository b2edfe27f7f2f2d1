#include "base/dtype.h"

#include <algorithm>
#include <cmath>

namespace mneme {
namespace {

uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

float FloatOf(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

uint16_t Load16(const void* data, size_t i) {
  uint16_t bits;
  std::memcpy(&bits, static_cast<const char*>(data) + 2 * i, sizeof(bits));
  return bits;
}

void Store16(void* data, size_t i, uint16_t bits) {
  std::memcpy(static_cast<char*>(data) + 2 * i, &bits, sizeof(bits));
}

}  // namespace

absl::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "f32";
    case DType::kF16: return "f16";
    case DType::kBF16: return "bf16";
    case DType::kI8: return "i8";
  }
  return "unknown";
}

size_t DTypeSize(DType dtype) {
  switch (dtype) {
    case DType::kF32: return 4;
    case DType::kF16: return 2;
    case DType::kBF16: return 2;
    case DType::kI8: return 1;
  }
  return 0;
}

size_t RowBytes(DType dtype, int64_t dim) {
  return static_cast<size_t>(dim) * DTypeSize(dtype) + (dtype == DType::kI8 ? sizeof(float) : 0);
}

float F16ToF32(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return FloatOf(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x0400u) return FloatOf(sign | ((magnitude << 13) + (112u << 23)));
  // Subnormal: the value is magnitude * 2^-24, exact in f32.
  const float value = static_cast<float>(magnitude) * 0x1p-24f;
  return sign != 0 ? -value : value;
}

uint16_t F32ToF16(float value) {
  const uint32_t bits = BitsOf(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {
    // Subnormal result: adding 0.5 aligns the f16 ulp (2^-24) with the f32 ulp, so the FPU rounds.
    const float aligned = FloatOf(magnitude) + 0.5f;
    return sign | static_cast<uint16_t>(BitsOf(aligned) - BitsOf(0.5f));
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return sign | static_cast<uint16_t>((rounded - (112u << 23)) >> 13);
}

uint16_t F32ToBF16(float value) {
  const uint32_t bits = BitsOf(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

void ConvertToF32(DType dtype, const void* source, float* destination, size_t n) {
  switch (dtype) {
    case DType::kF32:
      std::memcpy(destination, source, n * sizeof(float));
      return;
    case DType::kF16:
      for (size_t i = 0; i < n; ++i) destination[i] = F16ToF32(Load16(source, i));
      return;
    case DType::kBF16:
      for (size_t i = 0; i < n; ++i) destination[i] = BF16ToF32(Load16(source, i));
      return;
    case DType::kI8:
      return;
  }
}

void ConvertFromF32(const float* source, DType dtype, void* destination, size_t n) {
  switch (dtype) {
    case DType::kF32:
      std::memcpy(destination, source, n * sizeof(float));
      return;
    case DType::kF16:
      for (size_t i = 0; i < n; ++i) Store16(destination, i, F32ToF16(source[i]));
      return;
    case DType::kBF16:
      for (size_t i = 0; i < n; ++i) Store16(destination, i, F32ToBF16(source[i]));
      return;
    case DType::kI8:
      return;
  }
}

void EncodeRow(const float* source, DType dtype, void* row, int64_t dim) {
  if (dtype != DType::kI8) {
    ConvertFromF32(source, dtype, row, static_cast<size_t>(dim));
    return;
  }
  float largest = 0.0f;
  for (int64_t i = 0; i < dim; ++i) largest = std::max(largest, std::fabs(source[i]));
  const float scale = largest / 127.0f;
  auto* codes = static_cast<int8_t*>(row);
  for (int64_t i = 0; i < dim; ++i) {
    // The quotient can pass 127 by a rounding error, or by much if the scale is subnormal.
    const float code = scale > 0.0f ? std::nearbyint(source[i] / scale) : 0.0f;
    codes[i] = static_cast<int8_t>(std::clamp(code, -127.0f, 127.0f));
  }
  std::memcpy(codes + dim, &scale, sizeof(scale));
}

void DecodeRow(DType dtype, const void* row, float* destination, int64_t dim) {
  if (dtype != DType::kI8) {
    ConvertToF32(dtype, row, destination, static_cast<size_t>(dim));
    return;
  }
  const auto* codes = static_cast<const int8_t*>(row);
  float scale;
  std::memcpy(&scale, codes + dim, sizeof(scale));
  for (int64_t i = 0; i < dim; ++i) destination[i] = scale * static_cast<float>(codes[i]);
}

bool AllFinite(DType dtype, const void* data, size_t n) {
  // An exponent of all ones means NaN or infinity; no branch inside, so the loops vectorise.
  uint32_t bad = 0;
  switch (dtype) {
    case DType::kF32:
      for (size_t i = 0; i < n; ++i) {
        uint32_t bits;
        std::memcpy(&bits, static_cast<const char*>(data) + 4 * i, sizeof(bits));
        bad |= static_cast<uint32_t>((bits & 0x7f800000u) == 0x7f800000u);
      }
      break;
    case DType::kF16:
      for (size_t i = 0; i < n; ++i) bad |= static_cast<uint32_t>((Load16(data, i) & 0x7c00u) == 0x7c00u);
      break;
    case DType::kBF16:
      for (size_t i = 0; i < n; ++i) bad |= static_cast<uint32_t>((Load16(data, i) & 0x7f80u) == 0x7f80u);
      break;
    case DType::kI8:
      break;
  }
  return bad == 0;
}

}  // namespace mneme
