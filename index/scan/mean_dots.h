// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_MEAN_DOTS_H_
#define MNEME_INDEX_SCAN_MEAN_DOTS_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

#include "index/scan/code_scan_kernel.h"
#include "index/scan/key_codes.h"

namespace mneme {

// The dot products of some queries with the means of a few chunks: the part of q·k that codes leave out
// (docs/design/scan.md). Not thread-safe.
class MeanDots {
 public:
  // Chunks computed at once.
  static constexpr int64_t kChunks = codes::kMeansPerCall;

  // Prepares for `count` queries of `dim` elements; SetQuery follows for each. Keeps its buffers between scans.
  void Begin(const codes::Kernels& kernels, int64_t count, int64_t dim);

  // vector: f32 [dim], the query before rotation. relative_error: an upper bound of what f32 may round away in its dot
  // product with a vector of norm 1.
  void SetQuery(int64_t query, const float* vector, float relative_error);

  struct Chunk {
    const KeyCodes* codes;
    int64_t row;  // any row of the chunk
  };

  // Computes the products for `chunks` and prefetches the means of `next`. Requires: 1 to kChunks chunks, at most
  // kChunks next ones.
  void Compute(absl::Span<const Chunk> chunks, absl::Span<const Chunk> next);

  // [count] for chunk i of the last Compute, each an upper bound: the computed product plus RoundingError. The products
  // for chunk i + 1 lie stride() floats further on.
  const float* UpperBounds(int64_t i) const { return upper_bounds_.data() + i * stride_; }
  int64_t stride() const { return stride_; }

  // An upper bound of what f32 rounds away in the product of this query and the chunk's mean.
  float RoundingError(int64_t query, const Chunk& chunk) const {
    return relative_errors_[static_cast<size_t>(query)] * chunk.codes->MeanNorm(chunk.row) + kUnderflow;
  }

 private:
  // More than what products may lose below f32's normal range.
  static constexpr float kUnderflow = 1e-36f;

  const codes::Kernels* kernels_ = nullptr;
  int64_t dim_ = 0;
  int64_t stride_ = 0;                  // the number of queries, rounded up to a multiple of kQueryLanes
  std::vector<float> packed_queries_;   // the queries, [stride / kQueryLanes][dim][kQueryLanes]
  std::vector<float> relative_errors_;  // [stride]
  std::vector<float> upper_bounds_;     // [kChunks][stride]
};

}  // namespace mneme

#endif  // MNEME_INDEX_SCAN_MEAN_DOTS_H_
