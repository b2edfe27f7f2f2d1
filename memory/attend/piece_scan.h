// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_PIECE_SCAN_H_
#define MNEME_MEMORY_ATTEND_PIECE_SCAN_H_

#include <cstdint>
#include <deque>
#include <memory_resource>
#include <vector>

#include "absl/types/span.h"

#include "index/scan/certified_scan.h"
#include "memory/attend/retrieve_plan.h"

namespace mneme {

// Keys of one KV head of a sealed segment, read from the database one by one.
class SegmentKeys final : public KeySource {
 public:
  SegmentKeys(const VisibleRows& rows, size_t layer, int64_t kv_head, DType dtype, int64_t dim)
      : KeySource(dtype, dim), segment_(rows.segment.get()), layer_(layer), head_(static_cast<int32_t>(kv_head)) {}

  absl::Status Read(absl::Span<const int64_t> rows, absl::Span<char> keys) override {
    return segment_->ReadRows(layer_, head_, RowKind::kKeys, rows, keys);
  }
  void WillRead(absl::Span<const int64_t> rows) override {
    segment_->WillReadRows(layer_, head_, RowKind::kKeys, rows);
  }

 private:
  Segment* const segment_;
  const size_t layer_;
  const int32_t head_;
};

// Scans pieces of the memory for some queries of some heads of one group, exactly. An object keeps its buffers for the
// next time.
class PieceScan {
 public:
  // queries: numbers within the sequence; heads: of one KV head. Both are used until End.
  // top: [heads][queries]. floors: the same (see CertifiedScan), or empty.
  void Begin(const RetrievePlan& plan, int64_t kv_head, absl::Span<const int32_t> heads,
             absl::Span<const int64_t> queries, absl::Span<const float> floors, TopK* top);

  // Rows [row_begin, row_end) of `rows`.
  void Add(const VisibleRows& rows, int64_t row_begin, int64_t row_end);

  // `top` is complete when this returns. Rows that could not be read are told to the plan.
  void End();

 private:
  // kClamped: scores rows that may be nearer than a head's distance one by one; returns where the others end.
  int64_t AddNear(const VisibleRows& rows, int64_t row_begin, int64_t row_end);

  const RetrievePlan* plan_ = nullptr;
  int64_t kv_head_ = 0;
  absl::Span<const int32_t> heads_;
  absl::Span<const int64_t> queries_;
  TopK* top_ = nullptr;
  std::vector<float> vectors_;
  std::vector<Ranking> rankings_;
  CertifiedScan scan_;
  std::deque<SegmentKeys> sources_;  // of the scan; their places stay
};

// One a thread, so that searching allocates nothing once it has run.
PieceScan& ThreadPieceScan();

// Rows that were good for some query of a head, found in the memory once and ranked for other queries of that head.
// They lie in `memory`, which outlives them.
class Witnesses {
 public:
  // tokens: different ones. None count if there are not top_k of them, or if one cannot be seen.
  Witnesses(const RetrievePlan& plan, int64_t kv_head, int32_t head, absl::Span<const int64_t> tokens,
            std::pmr::memory_resource* memory);
  Witnesses(Witnesses&&) = default;  // keys stay where they are

  // A logit that the worst of the top_k best rows for `query` is known to reach: that of the worst witness; -infinity
  // without any.
  float Floor(int64_t query) const;

 private:
  absl::Status ReadMissing(int64_t kv_head);

  const RetrievePlan* plan_;
  int32_t head_;
  DType dtype_;
  std::pmr::vector<const VisibleRows*> owners_;
  std::pmr::vector<const char*> keys_;
  std::pmr::vector<int64_t> rows_;  // of the owners
  std::pmr::vector<char> read_;     // what of keys_ is not in memory
};

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_PIECE_SCAN_H_
