// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_TOKEN_RANGE_SCAN_H_
#define MNEME_MEMORY_ATTEND_TOKEN_RANGE_SCAN_H_

#include <cstdint>
#include <deque>
#include <vector>

#include "absl/types/span.h"

#include "index/scan/code_scan.h"
#include "memory/attend/search_plan.h"

namespace mneme {

// Keys of one KV head of a sealed segment, read from the database one by one.
class SegmentKeys final : public KeySource {
 public:
  SegmentKeys(const VisibleRows& rows, size_t layer, int64_t kv_head, DType dtype, int64_t dim)
      : KeySource(dtype, dim), segment_(rows.segment.get()), layer_(layer), head_(static_cast<int32_t>(kv_head)) {}

  absl::Status Read(absl::Span<const int64_t> rows, absl::Span<char> keys) override {
    return segment_->ReadRows(layer_, head_, RowKind::kKeys, rows, keys);
  }
  void Prefetch(absl::Span<const int64_t> rows) override {
    segment_->PrefetchRows(layer_, head_, RowKind::kKeys, rows);
  }

 private:
  Segment* const segment_;
  const size_t layer_;
  const int32_t head_;
};

// Scans ranges of the memory for some queries of query heads that share one KV head: Begin, Add for each range, End.
// The result is exact. One object serves many scans, one after another, and keeps its buffers. Not thread-safe.
class TokenRangeScan {
 public:
  // queries: numbers within the sequence. heads: of KV head `kv_head`. The spans are used until End.
  // top: [heads][queries], receives the best rows. known_thresholds: the same shape, logits that the worst of the
  // best rows is known to reach (CodeScan::Begin); empty: none are known.
  void Begin(const SearchPlan& plan, int64_t kv_head, absl::Span<const int32_t> heads,
             absl::Span<const int64_t> queries, absl::Span<const float> known_thresholds, TopK* top);

  // Rows [row_begin, row_end) of `rows`.
  void Add(const VisibleRows& rows, int64_t row_begin, int64_t row_end);

  // Completes `top`. A failure to read rows goes to SearchPlan::errors.
  void End();

 private:
  // kClamped: scores the rows that may be nearer than a head's distance one by one.
  // Returns: far_end; rows [row_begin, far_end) are farther for every query and head, and are left to the scan.
  int64_t ScoreNearRows(const VisibleRows& rows, int64_t row_begin, int64_t row_end);

  const SearchPlan* plan_ = nullptr;
  int64_t kv_head_ = 0;
  absl::Span<const int32_t> heads_;
  absl::Span<const int64_t> queries_;
  TopK* top_ = nullptr;
  std::vector<float> vectors_;     // [heads][queries][key_dim]
  std::vector<Ranking> rankings_;  // [heads][queries]
  CodeScan scan_;
  std::deque<SegmentKeys> sources_;  // of scan_, which keeps pointers to them
};

// Returns: the calling thread's object, whose buffers have grown to what earlier searches needed.
TokenRangeScan& ThreadTokenRangeScan();

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_TOKEN_RANGE_SCAN_H_
