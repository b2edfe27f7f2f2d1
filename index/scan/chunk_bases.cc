// SPDX-License-Identifier: Apache-2.0
#include "index/scan/chunk_bases.h"

#include <algorithm>

#include "base/prefetch.h"

namespace mneme {

void ChunkBases::Begin(const codes::Kernels& kernels, int64_t count, int64_t dim) {
  kernels_ = &kernels;
  dim_ = dim;
  stride_ = (count + codes::kLanes - 1) / codes::kLanes * codes::kLanes;
  lanes_.resize(static_cast<size_t>(stride_ * dim));
  slack_weights_.resize(static_cast<size_t>(stride_));
  bases_.resize(static_cast<size_t>(stride_ * kChunks));
}

void ChunkBases::Set(int64_t query, const float* vector, float slack_weight) {
  float* const lane = lanes_.data() + query / codes::kLanes * codes::kLanes * dim_ + query % codes::kLanes;
  for (int64_t d = 0; d < dim_; ++d) lane[d * codes::kLanes] = vector[d];
  slack_weights_[static_cast<size_t>(query)] = slack_weight;
}

void ChunkBases::Compute(absl::Span<const Chunk> chunks, absl::Span<const Chunk> next) {
  for (const Chunk& chunk : next) {
    PrefetchBytes(chunk.codes->Mean(chunk.row), chunk.codes->mean_bytes());
  }
  const float* means[kChunks];
  float norms[kChunks];
  for (size_t i = 0; i < kChunks; ++i) {
    // Where there are fewer, the last one is computed again.
    const Chunk& chunk = chunks[std::min(i, chunks.size() - 1)];
    means[i] = chunk.codes->Mean(chunk.row);
    norms[i] = chunk.codes->MeanNorm(chunk.row);
  }
  const auto n = static_cast<int64_t>(chunks.size());
  for (int64_t query = 0; query < stride_; query += codes::kLanes) {
    float dots[kChunks * codes::kLanes];
    kernels_->dots(lanes_.data() + query * dim_, means, dim_, dots);
    for (int64_t i = 0; i < n; ++i) {
      float* const bases = bases_.data() + i * stride_ + query;
      const float* const weights = slack_weights_.data() + query;
      for (int64_t lane = 0; lane < codes::kLanes; ++lane) {
        bases[lane] = dots[i * codes::kLanes + lane] + (weights[lane] * norms[i] + kTiny);
      }
    }
  }
}

}  // namespace mneme
