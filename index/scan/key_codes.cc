// SPDX-License-Identifier: Apache-2.0
#include "index/scan/key_codes.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/status.h"
#include "index/scan/coding_kernel.h"
#include "index/scan/rotation.h"

namespace mneme {

// The arrays lie in one allocation, each aligned to 64 bytes. All are zero at first; nothing writes to elements from
// dim on.
struct KeyCodes::Workspace {
  Workspace(int64_t dim, int64_t coded_dim) : buffer(static_cast<size_t>(coded_dim) * (2 * kBlockRows + 2) + kLine) {
    const auto address = reinterpret_cast<uintptr_t>(buffer.data());
    columns = buffer.data() + (kLine - address / sizeof(float) % kLine) % kLine;
    rows = columns + kBlockRows * coded_dim;
    mean = rows + kBlockRows * coded_dim;
    weights = mean + coded_dim;
    RotationWeights(dim, weights);
  }

  static constexpr size_t kLine = 64 / sizeof(float);
  std::vector<float> buffer;
  float* columns;  // [coded_dim][kBlockRows]
  float* rows;     // [kBlockRows][coded_dim]
  float* mean;     // [coded_dim]
  float* weights;  // [coded_dim]
};

KeyCodes::KeyCodes(int64_t dim)
    : dim_(dim),
      coded_dim_((dim + codes::kTileDims - 1) / codes::kTileDims * codes::kTileDims),
      means_(static_cast<size_t>(dim + 1) * sizeof(float)),
      blocks_(static_cast<size_t>(codes::BlockBytes(coded_dim_))) {}

bool KeyCodes::Extend(const KeyRows& keys) {
  const int64_t whole = keys.size() / kBlockRows * kBlockRows;
  if (rows() >= whole) return false;
  MutexLock lock(&mutex_);
  if (rows() >= whole) return false;
  if (blocks_.size() == 0) {
    blocks_.Reserve(BlocksOf(whole));
    means_.Reserve(MeansOf(whole));
  }
  Workspace space(dim_, coded_dim_);
  for (int64_t row = rows(); row < whole; row += kBlockRows) {
    // The mean of the previous chunk's rows; for the first chunk, of its first block. These rows are there whenever the
    // chunk begins to grow, so codes do not depend on when they are made.
    if (row == 0) {
      AppendMean(keys, 0, kBlockRows, space);
    } else if (row % kChunkRows == 0) {
      AppendMean(keys, row - kChunkRows, row, space);
    }
    AppendBlock(keys, row, space);
  }
  return true;
}

void KeyCodes::EncodeAll(const KeyRows& keys) {
  const int64_t whole = keys.size() / kBlockRows * kBlockRows;
  if (whole == 0) return;
  MutexLock lock(&mutex_);
  blocks_.Reserve(BlocksOf(whole));
  means_.Reserve(MeansOf(whole));
  Workspace space(dim_, coded_dim_);
  for (int64_t row = 0; row < whole; row += kBlockRows) {
    if (row % kChunkRows == 0) AppendMean(keys, row, std::min(whole, row + kChunkRows), space);
    AppendBlock(keys, row, space);
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

void KeyCodes::DecodeBlock(const KeyRows& keys, int64_t first_row, float* rows) const {
  int64_t contiguous;
  const char* encoded = keys.Rows(first_row, &contiguous);
  if (contiguous >= kBlockRows && dim_ == coded_dim_ && keys.dtype() != DType::kI8) {
    ConvertToF32(keys.dtype(), encoded, rows, static_cast<size_t>(kBlockRows * dim_));
    return;
  }
  for (int64_t r = 0; r < kBlockRows; ++r) keys.Decode(first_row + r, rows + r * coded_dim_);
}

void KeyCodes::AppendMean(const KeyRows& keys, int64_t begin, int64_t end, Workspace& space) {
  std::vector<float> mean(static_cast<size_t>(coded_dim_) + 1);
  for (int64_t row = begin; row < end; row += kBlockRows) {
    DecodeBlock(keys, row, space.rows);
    codes::BestCodingKernels().add_rows(space.rows, kBlockRows, coded_dim_, mean.data());
  }
  const auto dim = static_cast<size_t>(dim_);
  double squares = 0;
  for (size_t i = 0; i < dim; ++i) {
    mean[i] /= static_cast<float>(end - begin);
    // Any mean is right, but an infinite one would make all bounds useless.
    if (!std::isfinite(mean[i])) mean[i] = 0;
    squares += static_cast<double>(mean[i]) * mean[i];
  }
  mean[dim] = static_cast<float>(std::sqrt(squares) * 1.0001);
  means_.Append(mean.data(), 1);
}

void KeyCodes::AppendBlock(const KeyRows& keys, int64_t first_row, Workspace& space) {
  std::memcpy(space.mean, Mean(first_row), static_cast<size_t>(dim_) * sizeof(float));
  DecodeBlock(keys, first_row, space.rows);
  codes::BestCodingKernels().encode_block(space.rows, space.mean, space.weights, dim_, coded_dim_, space.columns,
                                          static_cast<char*>(blocks_.Next()));
  blocks_.Publish();
}

}  // namespace mneme
