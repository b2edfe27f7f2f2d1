// SPDX-License-Identifier: Apache-2.0
#include "base/dtype.h"

#include <algorithm>
#include <bit>

#include "base/cpu.h"
#include "base/f16c.h"

namespace mneme {
namespace {

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

namespace {

// The next two have no branch, so that loops over them vectorise. They compare signed numbers, because SSE2 does.

inline float WidenF16(uint16_t bits) {
  const int32_t magnitude = bits & 0x7fff;
  // Subnormal: the value is magnitude * 2^-24, exact in f32.
  const int32_t subnormal = std::bit_cast<int32_t>(static_cast<float>(magnitude) * 0x1p-24f);
  const int32_t normal = (magnitude << 13) + (112 << 23);
  const int32_t special = magnitude << 13 | 0x7f800000;  // infinity, NaN
  const int32_t wide = magnitude >= 0x7c00 ? special : magnitude >= 0x0400 ? normal : subnormal;
  return std::bit_cast<float>(static_cast<uint32_t>(bits & 0x8000) << 16 | static_cast<uint32_t>(wide));
}

inline uint16_t NarrowF16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto magnitude = static_cast<int32_t>(bits & 0x7fffffffu);
  // Subnormal result: adding 0.5 aligns the f16 ulp (2^-24) with the f32 ulp, so the FPU rounds.
  const int32_t subnormal =
      std::bit_cast<int32_t>(std::bit_cast<float>(magnitude) + 0.5f) - std::bit_cast<int32_t>(0.5f);
  const auto rounded = static_cast<uint32_t>(magnitude) + 0xfffu + (static_cast<uint32_t>(magnitude) >> 13 & 1u);
  const auto normal = static_cast<int32_t>((rounded - (112u << 23)) >> 13);
  int32_t half = magnitude < 0x38800000 ? subnormal : normal;
  half = magnitude >= 0x477ff000 ? 0x7c00 : half;  // 65520 and above round to infinity
  half = magnitude > 0x7f800000 ? 0x7e00 : half;
  return static_cast<uint16_t>(bits >> 16 & 0x8000u) | static_cast<uint16_t>(half);
}

// Convert the first of n elements by F16C if the CPU has it. Return: how many.
size_t WidenMost([[maybe_unused]] const void* source, [[maybe_unused]] float* destination, [[maybe_unused]] size_t n) {
#if defined(__x86_64__)
  if (BestCpuTarget() >= CpuTarget::kAvx2) return WidenF16c(source, destination, n);
#endif
  return 0;
}

size_t NarrowMost([[maybe_unused]] const float* source, [[maybe_unused]] void* destination, [[maybe_unused]] size_t n) {
#if defined(__x86_64__)
  if (BestCpuTarget() >= CpuTarget::kAvx2) return NarrowF16c(source, destination, n);
#endif
  return 0;
}

}  // namespace

float F16ToF32(uint16_t bits) {
  return WidenF16(bits);
}

uint16_t F32ToF16(float value) {
  return NarrowF16(value);
}

uint16_t F32ToBF16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const auto magnitude = static_cast<int32_t>(bits & 0x7fffffffu);
  return static_cast<uint16_t>(magnitude > 0x7f800000 ? (bits >> 16 | 0x40u) : rounded);
}

void ConvertToF32(DType dtype, const void* source, float* destination, size_t n) {
  switch (dtype) {
    case DType::kF32: std::memcpy(destination, source, n * sizeof(float)); return;
    case DType::kF16:
      for (size_t i = WidenMost(source, destination, n); i < n; ++i) {
        destination[i] = WidenF16(Load16(source, i));
      }
      return;
    case DType::kBF16:
      for (size_t i = 0; i < n; ++i) destination[i] = BF16ToF32(Load16(source, i));
      return;
    case DType::kI8: return;
  }
}

void ConvertFromF32(const float* source, DType dtype, void* destination, size_t n) {
  switch (dtype) {
    case DType::kF32: std::memcpy(destination, source, n * sizeof(float)); return;
    case DType::kF16:
      for (size_t i = NarrowMost(source, destination, n); i < n; ++i) {
        Store16(destination, i, NarrowF16(source[i]));
      }
      return;
    case DType::kBF16:
      for (size_t i = 0; i < n; ++i) Store16(destination, i, F32ToBF16(source[i]));
      return;
    case DType::kI8: return;
  }
}

void EncodeRow(const float* source, DType dtype, void* row, int64_t dim) {
  if (dtype != DType::kI8) {
    ConvertFromF32(source, dtype, row, static_cast<size_t>(dim));
    return;
  }
  // Finite magnitudes are ordered as their bits are, and the maximum of integers vectorises.
  int32_t greatest = 0;
  for (int64_t i = 0; i < dim; ++i) {
    const int32_t magnitude = std::bit_cast<int32_t>(source[i]) & 0x7fffffff;
    greatest = magnitude > greatest ? magnitude : greatest;
  }
  const float scale = std::bit_cast<float>(greatest) / 127.0f;
  auto* codes = static_cast<int8_t*>(row);
  if (scale > 0.0f) {
    constexpr float kRounder = 0x1.8p23f;  // adding and subtracting it rounds to an integer, ties to even
    for (int64_t i = 0; i < dim; ++i) {
      // The quotient may exceed 127 by a rounding error, or by much if the scale is subnormal.
      float code = source[i] / scale;
      code = code > 127.0f ? 127.0f : code;
      code = code < -127.0f ? -127.0f : code;
      codes[i] = static_cast<int8_t>(static_cast<int32_t>((code + kRounder) - kRounder));
    }
  } else {
    std::memset(codes, 0, static_cast<size_t>(dim));
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
  // An exponent of all ones means NaN or infinity. There is no branch, so that the loops vectorise.
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
    case DType::kI8: break;
  }
  return bad == 0;
}

bool EncodeFinite(DType from, const void* source, int64_t stride, int64_t rows, int64_t dim, DType to, void* encoded) {
  const auto n = static_cast<size_t>(dim);
#if defined(__x86_64__)
  if (BestCpuTarget() >= CpuTarget::kAvx2 && (from == to || (from == DType::kF32 && to == DType::kF16))) {
    const auto count = static_cast<size_t>(rows);
    if (from != to) return NarrowFiniteF16c(source, stride, count, n, encoded);
    if (from == DType::kF32) return CopyFinite32(source, stride, count, n, encoded);
    return CopyFinite16(source, stride, count, n, from == DType::kF16 ? 0x7c00 : 0x7f80, encoded);
  }
#endif
  constexpr size_t kPiece = 256;
  const auto* row = static_cast<const char*>(source);
  auto* out = static_cast<char*>(encoded);
  for (int64_t i = 0; i < rows; ++i, row += stride, out += RowBytes(to, dim)) {
    if (from == to) {
      std::memcpy(out, row, n * DTypeSize(to));
    } else {
      float wide[kPiece];
      for (size_t done = 0; done < n; done += kPiece) {
        const size_t piece = std::min(kPiece, n - done);
        ConvertToF32(from, row + done * DTypeSize(from), wide, piece);
        ConvertFromF32(wide, to, out + done * DTypeSize(to), piece);
      }
    }
    // An element that is not finite stays so when it is converted.
    if (!AllFinite(to, out, n)) return false;
  }
  return true;
}

}  // namespace mneme
