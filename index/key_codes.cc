#include "index/key_codes.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/status.h"
#include "index/rotation.h"

namespace mneme {
namespace {

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

// The greatest magnitude of n values, n a multiple of kParts; NaN is passed over.
float Greatest(const float* values, int64_t n) {
  float parts[kParts] = {};
  for (int64_t i = 0; i < n; i += kParts) {
    for (int64_t j = 0; j < kParts; ++j) {
      const float size = std::fabs(values[i + j]);
      parts[j] = size > parts[j] ? size : parts[j];
    }
  }
  return *std::max_element(parts, parts + kParts);
}

// The greatest bf16 that is not above `value`, which is positive and finite.
uint16_t BF16Down(float value) { return static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16); }

struct CodedRow {
  uint16_t inverse_scale;  // bf16
  float error;             // norm of what the code leaves out, in steps of the scale
  float norm;              // norm of what the code stands for, likewise
};

// Codes values [dim], dim a multiple of kParts, as code[i] = round(values[i] * inverse_scale) + kZeroCode.
CodedRow Encode(const float* values, int64_t dim, uint8_t* code) {
  constexpr auto kGreatest = static_cast<float>(codes::kGreatestCode);
  // Beyond these, squares or reciprocals leave f32's range: next to nothing codes as nothing, what is too great has no
  // bound, and the scan looks at the row itself.
  constexpr float kSmall = 1e-15f, kGreat = 1e15f;
  const float greatest = Greatest(values, dim);
  const uint16_t inverse_bits = BF16Down(greatest > kSmall && greatest < kGreat ? kGreatest / greatest : 1.0f);
  const auto inverse = std::bit_cast<float>(static_cast<uint32_t>(inverse_bits) << 16);
  float errors[kParts] = {}, norms[kParts] = {}, all[kParts] = {};
  for (int64_t i = 0; i < dim; i += kParts) {
    for (int64_t j = 0; j < kParts; ++j) {
      const float exact = values[i + j] * inverse;
      float whole = Round(exact);
      whole = whole > kGreatest ? kGreatest : whole;
      whole = whole > -kGreatest ? whole : -kGreatest;  // NaN, too
      const float rest = exact - whole;
      errors[j] += rest * rest;
      norms[j] += whole * whole;
      all[j] += exact * exact;
      code[i + j] = static_cast<uint8_t>(static_cast<int>(whole) + codes::kZeroCode);
    }
  }
  const float squares = SumOf(all);
  if (!(greatest < kGreat) || squares != squares) return {inverse_bits, std::numeric_limits<float>::infinity(), 0};
  // Room for the rounding of these sums, of the mean's subtraction and of the rotation (2^-20 of the norm).
  constexpr float kRoom = 1.0001f;
  return {inverse_bits, std::sqrt(SumOf(errors)) * kRoom + 3e-6f * std::sqrt(squares) + kSmall,
          std::sqrt(SumOf(norms)) * kRoom};
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

absl::Status KeyCodes::Restore(int64_t rows, Reader read) {
  if (rows == 0) return absl::OkStatus();
  MutexLock lock(&mutex_);
  const int64_t means = MeansOf(rows), blocks = BlocksOf(rows);
  char* const first_mean = means_.First(means);
  char* const first_block = blocks_.First(blocks);
  MNEME_RETURN_IF_ERROR(read(absl::MakeSpan(first_mean, static_cast<size_t>(means) * mean_bytes()),
                             absl::MakeSpan(first_block, static_cast<size_t>(blocks) * block_bytes())));
  means_.Publish(means);  // before the blocks that need them
  blocks_.Publish(blocks);
  return absl::OkStatus();
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
  uint8_t* codes_of_block = block + sizeof(codes::Header);
  codes::Header header;
  std::memset(&header, 0, sizeof(header));  // what lies behind its fields as well: blocks are kept and compared
  std::vector<uint8_t> code(static_cast<size_t>(coded_dim_));
  std::fill(key + dim_, key + coded_dim_, 0.0f);
  for (int64_t r = 0; r < kBlockRows; ++r) {
    keys.Decode(first_row + r, key);
    for (int64_t i = 0; i < dim_; ++i) key[i] -= mean[i];
    Rotate(key, dim_);
    const CodedRow row = Encode(key, coded_dim_, code.data());
    for (int64_t i = 0; i < coded_dim_; i += 4) std::memcpy(codes_of_block + i * kBlockRows + r * 4, code.data() + i, 4);
    header.inverse_scale[r] = row.inverse_scale;
    header.error = std::max(header.error, row.error);
    header.norm = std::max(header.norm, row.norm);
  }
  std::memcpy(block, &header, sizeof(header));
  blocks_.Publish();
}

}  // namespace mneme
