// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/token_range_scan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory_resource>
#include <numeric>

#include "attention/rotary.h"
#include "base/scratch.h"
#include "memory/segment/code_columns.h"
#include "memory/store_context.h"

namespace mneme {
namespace {

// Reads the keys of rows [row, row_end) in ascending order, from RAM or else from the database by the chunk.
class KeyReader {
 public:
  KeyReader(const SearchPlan& plan, const VisibleRows& rows, int64_t kv_head, int64_t row, int64_t row_end)
      : plan_(plan), rows_(rows), kv_head_(kv_head), row_end_(row_end), read_begin_(row), read_end_(row) {}

  // Returns: null if the row cannot be read; SearchPlan::errors says why.
  const char* Key(int64_t row) {
    if (rows_.keys != nullptr) return rows_.keys->heads[static_cast<size_t>(kv_head_)]->Row(row);
    const size_t row_bytes = RowBytes(plan_.stored_dtype(), plan_.request->layer.key_dim);
    if (row >= read_end_) {
      read_begin_ = row;
      read_end_ = std::min(row_end_, row + kChunkRows);
      std::vector<int64_t> which(static_cast<size_t>(read_end_ - read_begin_));
      std::iota(which.begin(), which.end(), read_begin_);
      buffer_.resize(which.size() * row_bytes);
      const absl::Status status = rows_.segment->ReadRows(plan_.view->layer, static_cast<int32_t>(kv_head_),
                                                          RowKind::kKeys, which, absl::MakeSpan(buffer_));
      if (!status.ok()) {
        plan_.errors->Update(status);
        return nullptr;
      }
    }
    return buffer_.data() + static_cast<size_t>(row - read_begin_) * row_bytes;
  }

 private:
  const SearchPlan& plan_;
  const VisibleRows& rows_;
  const int64_t kv_head_;
  const int64_t row_end_;
  int64_t read_begin_, read_end_;  // rows in buffer_
  std::vector<char> buffer_;
};

// Scores rows one by one (kClamped): a row nearer than the head's distance by the query rotated by its true distance,
// any other by the query rotated by the head's distance.
void ScoreClamped(const SearchPlan& plan, const VisibleRows& rows, int64_t row_begin, int64_t row_end, int64_t kv_head,
                  int64_t head, int64_t query, TopK& top) {
  const LayerCard& layer = plan.request->layer;
  const HeadRule& rule = plan.request->heads[static_cast<size_t>(head)];
  const auto dim = static_cast<size_t>(layer.key_dim);
  const Ranking ranking = plan.RankingOf(head, query, rows);
  Scratch scratch;
  std::pmr::vector<float> rotated(dim, &scratch);
  KeyReader keys(plan, rows, kv_head, row_begin, row_end);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t position = rows.columns != nullptr ? rows.columns->Position(row) : rows.first_token + row;
    const auto distance = static_cast<double>(plan.positions[static_cast<size_t>(query)] - position);
    const float* vector = plan.Vector(head, query);
    if (distance < static_cast<double>(rule.distance)) {
      std::copy_n(plan.PlainVector(head, query), dim, rotated.data());
      RotateQueryByDistance(layer.rotary, distance, rotated.data());
      vector = rotated.data();
    }
    const char* const key = keys.Key(row);
    if (key == nullptr) return;
    float dot;
    DotKeys(plan.stored_dtype(), layer.key_dim, absl::MakeConstSpan(&key, 1), vector, &dot);
    top.Push(ranking.Logit(dot, row), rows.first_token + row);
  }
}

}  // namespace

void TokenRangeScan::Begin(const SearchPlan& plan, int64_t kv_head, absl::Span<const int32_t> heads,
                           absl::Span<const int64_t> queries, absl::Span<const float> known_thresholds, TopK* top) {
  plan_ = &plan;
  kv_head_ = kv_head;
  heads_ = heads;
  queries_ = queries;
  top_ = top;
  const auto dim = static_cast<size_t>(plan.request->layer.key_dim);
  const size_t count = heads.size() * queries.size();
  vectors_.resize(count * dim);
  rankings_.resize(count);
  float* vector = vectors_.data();
  for (const int32_t head : heads) {
    for (const int64_t query : queries) vector = std::copy_n(plan.Vector(head, query), dim, vector);
  }
  sources_.clear();
  scan_.Begin(vectors_.data(), static_cast<int64_t>(count), static_cast<int64_t>(dim),
              known_thresholds.empty() ? nullptr : known_thresholds.data(), top);
}

void TokenRangeScan::Add(const VisibleRows& rows, int64_t row_begin, int64_t row_end) {
  const bool clamped = plan_->request->policy == PositionPolicy::kClamped;
  const int64_t far_end = clamped ? ScoreNearRows(rows, row_begin, row_end) : row_end;
  if (far_end <= row_begin) return;
  for (size_t g = 0; g < heads_.size(); ++g) {
    for (size_t i = 0; i < queries_.size(); ++i) {
      rankings_[g * queries_.size() + i] = plan_->RankingOf(heads_[g], queries_[i], rows);
    }
  }
  KeyCodes& codes = *rows.codes->heads[static_cast<size_t>(kv_head_)];
  if (rows.keys == nullptr) {
    sources_.emplace_back(rows, plan_->view->layer, kv_head_, plan_->stored_dtype(), plan_->request->layer.key_dim);
    scan_.Add(sources_.back(), codes, row_begin, far_end, rows.first_token, rankings_.data());
    return;
  }
  const KeyRows& keys = *rows.keys->heads[static_cast<size_t>(kv_head_)];
  if (IsCoded(keys.size()) && codes.Extend(keys)) rows.segment->CodesGrew();
  scan_.Add(keys, codes, row_begin, far_end, rows.first_token, rankings_.data());
}

void TokenRangeScan::End() {
  const absl::StatusOr<ScanCounts> counts = scan_.End();
  if (counts.ok()) {
    plan_->sequence->memory->context().scan_counters().Add(*counts);
  } else {
    plan_->errors->Update(counts.status());
  }
  sources_.clear();
}

int64_t TokenRangeScan::ScoreNearRows(const VisibleRows& rows, int64_t row_begin, int64_t row_end) {
  // Rows before far_end are beyond the distance of every query and head. Without position columns a later row is
  // nearer, so one bound divides the range.
  int64_t far_end = row_begin;
  if (rows.columns == nullptr) {
    int64_t first_near_token = std::numeric_limits<int64_t>::max();
    for (const int32_t head : heads_) {
      const auto reach = static_cast<int64_t>(std::ceil(plan_->request->heads[static_cast<size_t>(head)].distance));
      for (const int64_t query : queries_) {
        first_near_token = std::min(first_near_token, plan_->positions[static_cast<size_t>(query)] - reach + 1);
      }
    }
    far_end = std::clamp(first_near_token - rows.first_token, row_begin, row_end);
  }
  for (size_t g = 0; g < heads_.size(); ++g) {
    for (size_t i = 0; i < queries_.size(); ++i) {
      ScoreClamped(*plan_, rows, far_end, row_end, kv_head_, heads_[g], queries_[i], top_[g * queries_.size() + i]);
    }
  }
  return far_end;
}

TokenRangeScan& ThreadTokenRangeScan() {
  thread_local TokenRangeScan scan;
  return scan;
}

}  // namespace mneme
