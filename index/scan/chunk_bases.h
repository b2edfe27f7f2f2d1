// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_CHUNK_BASES_H_
#define MNEME_INDEX_SCAN_CHUNK_BASES_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

#include "index/scan/code_kernel.h"
#include "index/scan/key_codes.h"

namespace mneme {

// The part of dot products that the means of chunks make, for some queries and a few chunks at a time. Not thread-safe.
class ChunkBases {
 public:
  // Chunks computed at once.
  static constexpr int64_t kChunks = codes::kMeans;

  // For `count` queries of `dim` elements; each is Set next. Keeps its memory.
  void Begin(const codes::Kernels& kernels, int64_t count, int64_t dim);

  // vector: f32 [dim], as given, not rotated. slack_weight: what f32 may round away in a dot product with it, relative
  // to the norm of the other.
  void Set(int64_t query, const float* vector, float slack_weight);

  struct Chunk {
    const KeyCodes* codes;
    int64_t row;  // one of the chunk's
  };

  // Of at most kChunks chunks. Asks for the means of those that will be next.
  void Compute(absl::Span<const Chunk> chunks, absl::Span<const Chunk> next);

  // [count] of the i-th of them, raised by the slack; those of the next stride() further on.
  const float* Of(int64_t i) const { return bases_.data() + i * stride_; }
  int64_t stride() const { return stride_; }

  // What f32 may have rounded away from a base of this query in the chunk of `row`.
  float Slack(int64_t query, const Chunk& chunk) const {
    return slack_weights_[static_cast<size_t>(query)] * chunk.codes->MeanNorm(chunk.row) + kTiny;
  }

 private:
  // More than what products lose below f32's normal range.
  static constexpr float kTiny = 1e-36f;

  const codes::Kernels* kernels_ = nullptr;
  int64_t dim_ = 0;
  int64_t stride_ = 0;                // the queries up to a multiple of kLanes
  std::vector<float> lanes_;          // the queries [dim][kLanes], group after group
  std::vector<float> slack_weights_;  // [stride]
  std::vector<float> bases_;          // [kChunks][stride]
};

}  // namespace mneme

#endif  // MNEME_INDEX_SCAN_CHUNK_BASES_H_
