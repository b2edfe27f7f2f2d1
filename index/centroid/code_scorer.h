// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_CENTROID_CODE_SCORER_H_
#define MNEME_INDEX_CENTROID_CODE_SCORER_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

#include "index/scan/coded_queries.h"
#include "index/scan/reordered_rows.h"

namespace mneme {

// Internal to index/centroid: dot products of queries and coded rows, as the codes tell them. Keeps its memory. Not
// thread-safe.
class CodeScorer {
 public:
  // Codes `queries`, f32 [count, dim], for codes of that dimension.
  void Begin(const float* queries, int64_t count, const KeyCodes& codes);

  // Scores all rows of some blocks of `codes`: dots[query * stride + place], all of them finite.
  void Score(const KeyCodes& codes, absl::Span<const BlockRange> blocks, float* dots, int64_t stride);

 private:
  const codes::Kernels* kernels_ = nullptr;
  int64_t count_ = 0;
  CodedQueries queries_;
};

// Appends blocks [begin, end) to `blocks`, cut where chunks end.
void AppendByChunk(int64_t begin, int64_t end, std::vector<BlockRange>& blocks);

}  // namespace mneme

#endif  // MNEME_INDEX_CENTROID_CODE_SCORER_H_
