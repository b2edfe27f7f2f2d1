// SPDX-License-Identifier: Apache-2.0
#include "index/scan/mean_dots.h"

#include <algorithm>

#include "base/prefetch.h"

namespace mneme {

using codes::kQueryLanes;

void MeanDots::Begin(const codes::Kernels& kernels, int64_t count, int64_t dim) {
  kernels_ = &kernels;
  dim_ = dim;
  stride_ = (count + kQueryLanes - 1) / kQueryLanes * kQueryLanes;
  packed_queries_.resize(static_cast<size_t>(stride_ * dim));
  relative_errors_.resize(static_cast<size_t>(stride_));
  upper_bounds_.resize(static_cast<size_t>(stride_ * kChunks));
}

void MeanDots::SetQuery(int64_t query, const float* vector, float relative_error) {
  float* const lane = packed_queries_.data() + query / kQueryLanes * kQueryLanes * dim_ + query % kQueryLanes;
  for (int64_t d = 0; d < dim_; ++d) lane[d * kQueryLanes] = vector[d];
  relative_errors_[static_cast<size_t>(query)] = relative_error;
}

void MeanDots::Compute(absl::Span<const Chunk> chunks, absl::Span<const Chunk> next) {
  for (const Chunk& chunk : next) {
    PrefetchBytes(chunk.codes->Mean(chunk.row), chunk.codes->mean_bytes());
  }
  const float* means[kChunks];
  float norms[kChunks];
  for (size_t i = 0; i < kChunks; ++i) {
    // The kernel takes kChunks means. If there are fewer chunks, the last one is repeated and its copies are ignored.
    const Chunk& chunk = chunks[std::min(i, chunks.size() - 1)];
    means[i] = chunk.codes->Mean(chunk.row);
    norms[i] = chunk.codes->MeanNorm(chunk.row);
  }
  const auto n = static_cast<int64_t>(chunks.size());
  for (int64_t query = 0; query < stride_; query += kQueryLanes) {
    float dots[kChunks * kQueryLanes];
    kernels_->dot_means(packed_queries_.data() + query * dim_, means, dim_, dots);
    for (int64_t i = 0; i < n; ++i) {
      float* const bounds = upper_bounds_.data() + i * stride_ + query;
      const float* const errors = relative_errors_.data() + query;
      for (int64_t lane = 0; lane < kQueryLanes; ++lane) {
        bounds[lane] = dots[i * kQueryLanes + lane] + (errors[lane] * norms[i] + kUnderflow);
      }
    }
  }
}

}  // namespace mneme
