#include "index/key_codes.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/cpu.h"
#include "base/status.h"
#include "index/rotation.h"

namespace mneme {
namespace {

// Sums and maxima go in so many parts, whatever a vector holds: their bits are the same on every CPU.
constexpr int64_t kParts = 16;

// Vectors of the plainest CPU, and of AVX2.
struct Narrow {
  typedef float Floats __attribute__((vector_size(16)));
  typedef int32_t Ints __attribute__((vector_size(16)));
};
struct Wide {
  typedef float Floats __attribute__((vector_size(32)));
  typedef int32_t Ints __attribute__((vector_size(32)));
};

#define MNEME_INLINE inline __attribute__((always_inline))

// A value for each part.
template <typename V>
struct Parts {
  static constexpr int64_t kLanes = sizeof(typename V::Floats) / sizeof(float);
  static constexpr int64_t kVectors = kParts / kLanes;
  typename V::Floats vectors[kVectors] = {};

  MNEME_INLINE float Sum() const {
    float sum = 0;
    for (const auto& vector : vectors) {
      for (int64_t i = 0; i < kLanes; ++i) sum += vector[i];
    }
    return sum;
  }
  MNEME_INLINE float Greatest() const {
    float greatest = 0;
    for (const auto& vector : vectors) {
      for (int64_t i = 0; i < kLanes; ++i) greatest = vector[i] > greatest ? vector[i] : greatest;
    }
    return greatest;
  }
};

// The greatest magnitude of n values, n a multiple of kParts; NaN is passed over.
template <typename V>
MNEME_INLINE float Greatest(const float* values, int64_t n) {
  Parts<V> greatest;
  for (int64_t i = 0; i < n; i += kParts) {
    for (int64_t j = 0; j < Parts<V>::kVectors; ++j) {
      typename V::Ints bits;
      std::memcpy(&bits, values + i + j * Parts<V>::kLanes, sizeof(bits));
      const auto size = reinterpret_cast<typename V::Floats>(bits & 0x7fffffff);
      greatest.vectors[j] = size > greatest.vectors[j] ? size : greatest.vectors[j];
    }
  }
  return greatest.Greatest();
}

// The greatest bf16 that is not above `value`, which is positive and finite.
uint16_t BF16Down(float value) { return static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16); }

struct CodedRow {
  uint16_t inverse_scale;  // bf16
  float error;             // norm of what the code leaves out, in steps of the scale
  float norm;              // norm of what the code stands for, likewise
};

// Codes values [dim], dim a multiple of kParts, as code[i] = round(values[i] * inverse_scale) + kZeroCode.
template <typename V>
MNEME_INLINE CodedRow EncodeBy(const float* values, int64_t dim, uint8_t* code) {
  typedef typename V::Floats Floats;
  constexpr auto kGreatest = static_cast<float>(codes::kGreatestCode);
  // Beyond these, squares or reciprocals leave f32's range: next to nothing codes as nothing, what is too great has no
  // bound, and the scan looks at the row itself.
  constexpr float kSmall = 1e-15f, kGreat = 1e15f;
  // Added and taken off, it leaves the nearest whole number of what is below 2^22; added, that number in the last bits.
  constexpr float kShift = 0x1.8p23f;
  const float greatest = Greatest<V>(values, dim);
  const uint16_t inverse_bits = BF16Down(greatest > kSmall && greatest < kGreat ? kGreatest / greatest : 1.0f);
  const auto inverse = std::bit_cast<float>(static_cast<uint32_t>(inverse_bits) << 16);
  const Floats most = Floats{} + kGreatest;
  Parts<V> errors, norms, all;
  for (int64_t i = 0; i < dim; i += kParts) {
    uint32_t shifted[kParts];
    for (int64_t j = 0; j < Parts<V>::kVectors; ++j) {
      Floats exact;
      std::memcpy(&exact, values + i + j * Parts<V>::kLanes, sizeof(exact));
      exact = exact * inverse;
      Floats whole = (exact + kShift) - kShift;
      whole = whole > most ? most : whole;
      whole = whole > -most ? whole : -most;  // NaN, too
      const Floats rest = exact - whole;
      errors.vectors[j] += rest * rest;
      norms.vectors[j] += whole * whole;
      all.vectors[j] += exact * exact;
      const Floats bits = whole + (kShift + static_cast<float>(codes::kZeroCode));
      std::memcpy(shifted + j * Parts<V>::kLanes, &bits, sizeof(bits));
    }
    for (int64_t j = 0; j < kParts; ++j) code[i + j] = static_cast<uint8_t>(shifted[j]);
  }
  const float squares = all.Sum();
  if (!(greatest < kGreat) || squares != squares) return {inverse_bits, std::numeric_limits<float>::infinity(), 0};
  // Room for the rounding of these sums, of the mean's subtraction and of the rotation (2^-20 of the norm).
  constexpr float kRoom = 1.0001f;
  return {inverse_bits, std::sqrt(errors.Sum()) * kRoom + 3e-6f * std::sqrt(squares) + kSmall,
          std::sqrt(norms.Sum()) * kRoom};
}

CodedRow EncodePlain(const float* values, int64_t dim, uint8_t* code) {
  return EncodeBy<Narrow>(values, dim, code);
}

// The same arithmetic by wider vectors, and no multiply-adds: codes are the same on every CPU.
#if defined(__x86_64__)
__attribute__((target("avx2"))) CodedRow EncodeAvx2(const float* values, int64_t dim, uint8_t* code) {
  return EncodeBy<Wide>(values, dim, code);
}
#endif

CodedRow Encode(const float* values, int64_t dim, uint8_t* code) {
#if defined(__x86_64__)
  if (BestCpuTarget() >= CpuTarget::kAvx2) return EncodeAvx2(values, dim, code);
#endif
  return EncodePlain(values, dim, code);
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
