#include "index/key_codes.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "index/rotation.h"

namespace mneme {
namespace {

// The least bf16 that is not below `value`, which is not negative; infinity and NaN stay.
uint32_t BF16Up(float value) { return (std::bit_cast<uint32_t>(value) + 0xffffu) >> 16; }

struct CodedRow {
  float scale;
  float error;  // norm of what the code leaves out
  float norm;   // norm of what the code stands for
};

// To the nearest whole number, for |value| < 2^22: std::nearbyint is a call on CPUs without SSE4.1.
float Round(float value) {
  constexpr float kShift = 0x1.8p23f;
  return (value + kShift) - kShift;
}

// Sums and maxima go in this many parts, which compilers turn into vectors.
constexpr int64_t kParts = 16;

float SumOf(const float (&parts)[kParts]) {
  float sum = 0;
  for (const float part : parts) sum += part;
  return sum;
}

// Below this squares leave f32's range.
constexpr float kSmall = 1e-15f;

// Codes values [dim], dim a multiple of kParts, as code[i] = round(values[i] / scale) + kZeroCode.
CodedRow Encode(const float* values, int64_t dim, uint8_t* code) {
  static_assert(kParts == 16);
  float mosts[kParts] = {}, squares_of[kParts] = {};
  for (int64_t i = 0; i < dim; i += kParts) {
    for (int64_t j = 0; j < kParts; ++j) {
      const float size = std::fabs(values[i + j]);
      mosts[j] = size > mosts[j] ? size : mosts[j];
      squares_of[j] += size * size;
    }
  }
  const float most = *std::max_element(mosts, mosts + kParts);
  const float squares = SumOf(squares_of);
  if (!(squares < std::numeric_limits<float>::infinity()) || most < kSmall) {
    // No code: too great for f32's range (the scan shall look at the row itself) or next to nothing.
    std::fill_n(code, dim, static_cast<uint8_t>(codes::kZeroCode));
    const float error = most < kSmall ? most * std::sqrt(static_cast<float>(dim)) * 1.001f
                                      : std::numeric_limits<float>::infinity();
    return {0, error, 0};
  }
  const float scale = most / static_cast<float>(codes::kGreatestCode);
  const float inverse = 1.0f / scale;
  constexpr auto kGreatest = static_cast<float>(codes::kGreatestCode);
  float errors[kParts] = {}, norms[kParts] = {};
  for (int64_t i = 0; i < dim; i += kParts) {
    for (int64_t j = 0; j < kParts; ++j) {
      float whole = Round(values[i + j] * inverse);
      whole = whole > kGreatest ? kGreatest : whole;
      whole = whole < -kGreatest ? -kGreatest : whole;
      const float stands_for = whole * scale;
      const float rest = values[i + j] - stands_for;
      errors[j] += rest * rest;
      norms[j] += stands_for * stands_for;
      code[i + j] = static_cast<uint8_t>(static_cast<int>(whole) + codes::kZeroCode);
    }
  }
  // Room for the rounding of these sums, of the mean's subtraction and of the rotation (2^-20 of the norm).
  constexpr float kRoom = 1.0001f;
  return {scale, std::sqrt(SumOf(errors)) * kRoom + 3e-6f * std::sqrt(squares), std::sqrt(SumOf(norms)) * kRoom};
}

}  // namespace

KeyCodes::KeyCodes(int64_t dim)
    : dim_(dim),
      coded_dim_((dim + 15) / 16 * 16),
      means_(static_cast<size_t>(dim + 1) * sizeof(float)),
      blocks_(static_cast<size_t>(codes::BlockBytes(coded_dim_))) {}

void KeyCodes::Extend(const KeyRows& keys) {
  const int64_t whole = keys.size() / kBlockRows * kBlockRows;
  if (rows() >= whole) return;
  MutexLock lock(&mutex_);
  if (rows() >= whole) return;
  if (blocks_.size() == 0) {
    blocks_.Reserve(whole / kBlockRows);
    means_.Reserve((whole + kChunkRows - 1) / kChunkRows);
  }
  std::vector<float> key(static_cast<size_t>(coded_dim_));
  for (int64_t row = rows(); row < whole; row += kBlockRows) {
    if (row % kChunkRows == 0) AppendMean(keys, row, key.data());
    AppendBlock(keys, row, key.data());
  }
}

void KeyCodes::AppendMean(const KeyRows& keys, int64_t first_row, float* key) {
  // Of rows that are there already whenever the chunk begins to grow, so that codes do not depend on when it does: those
  // of the chunk before, or of the first block.
  const int64_t begin = std::max<int64_t>(0, first_row - kChunkRows);
  const int64_t end = first_row == 0 ? kBlockRows : first_row;
  const auto dim = static_cast<size_t>(dim_);
  std::vector<float> mean(dim + 1);
  for (int64_t row = begin; row < end; ++row) {
    keys.Decode(row, key);
    for (size_t i = 0; i < dim; ++i) mean[i] += key[i];
  }
  double squares = 0;
  for (size_t i = 0; i < dim; ++i) {
    mean[i] /= static_cast<float>(end - begin);
    // Any mean is right; an infinite one would only make all bounds useless.
    if (!std::isfinite(mean[i])) mean[i] = 0;
    squares += static_cast<double>(mean[i]) * mean[i];
  }
  mean.back() = static_cast<float>(std::sqrt(squares) * 1.0001);
  means_.Append(mean.data(), 1);
}

void KeyCodes::AppendBlock(const KeyRows& keys, int64_t first_row, float* key) {
  const float* mean = Mean(first_row);
  auto* block = static_cast<uint8_t*>(blocks_.Next());
  std::vector<uint8_t> code(static_cast<size_t>(coded_dim_));
  float scales[kBlockRows];
  uint32_t bounds[kBlockRows];
  codes::Extremes extremes = {};
  std::fill(key + dim_, key + coded_dim_, 0.0f);
  for (int64_t r = 0; r < kBlockRows; ++r) {
    keys.Decode(first_row + r, key);
    for (int64_t i = 0; i < dim_; ++i) key[i] -= mean[i];
    Rotate(key, dim_);
    const CodedRow row = Encode(key, coded_dim_, code.data());
    for (int64_t i = 0; i < coded_dim_; i += 4) std::memcpy(block + i * kBlockRows + r * 4, code.data() + i, 4);
    scales[r] = row.scale;
    bounds[r] = BF16Up(row.error) << 16 | BF16Up(row.norm);
    extremes.scale = std::max(extremes.scale, row.scale);
    extremes.error = std::max(extremes.error, std::bit_cast<float>(bounds[r] & 0xffff0000u));
    extremes.norm = std::max(extremes.norm, std::bit_cast<float>(bounds[r] << 16));
  }
  extremes.inverse_scale = extremes.scale > 0 ? 1 / extremes.scale : std::numeric_limits<float>::infinity();
  std::memset(block + coded_dim_ * kBlockRows, 0, codes::kScalesAt);
  std::memcpy(block + coded_dim_ * kBlockRows, &extremes, sizeof(extremes));
  std::memcpy(block + coded_dim_ * kBlockRows + codes::kScalesAt, scales, sizeof(scales));
  std::memcpy(block + coded_dim_ * kBlockRows + codes::kBoundsAt, bounds, sizeof(bounds));
  blocks_.Publish();
}

}  // namespace mneme
