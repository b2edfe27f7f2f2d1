// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/piece_scan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "attention/rotary.h"
#include "base/prefetch.h"
#include "base/scratch.h"
#include "base/status.h"
#include "memory/segment/code_columns.h"
#include "memory/segment/missing_rows.h"

namespace mneme {
namespace {

// The keys of rows [row, row_end) in turn, wherever they are.
class RowPieces {
 public:
  RowPieces(const RetrievePlan& plan, const VisibleRows& rows, int64_t kv_head, int64_t row, int64_t row_end)
      : plan_(plan), rows_(rows), kv_head_(kv_head), row_end_(row_end), read_begin_(row), read_end_(row) {}

  // Null if it cannot be read, which the plan is told.
  const char* Key(int64_t row) {
    if (rows_.keys != nullptr) return rows_.keys->heads[static_cast<size_t>(kv_head_)]->Row(row);
    const size_t row_bytes = RowBytes(plan_.sequence->memory->options().stored_dtype, plan_.request->layer.key_dim);
    if (row >= read_end_) {
      read_begin_ = row;
      read_end_ = std::min(row_end_, row + kChunkRows);
      std::vector<int64_t> which(static_cast<size_t>(read_end_ - read_begin_));
      std::iota(which.begin(), which.end(), read_begin_);
      read_.resize(which.size() * row_bytes);
      const absl::Status status = rows_.segment->ReadRows(plan_.view->layer, static_cast<int32_t>(kv_head_),
                                                          RowKind::kKeys, which, absl::MakeSpan(read_));
      if (!status.ok()) {
        plan_.errors->Update(status);
        return nullptr;
      }
    }
    return read_.data() + static_cast<size_t>(row - read_begin_) * row_bytes;
  }

 private:
  const RetrievePlan& plan_;
  const VisibleRows& rows_;
  const int64_t kv_head_;
  const int64_t row_end_;
  int64_t read_begin_, read_end_;
  std::vector<char> read_;
};

// Rows whose true distance decides their rotation, one by one (kClamped): those nearer than the head's distance. Rows
// at or beyond it go with the clamped query.
void ScoreClamped(const RetrievePlan& plan, const VisibleRows& rows, int64_t row_begin, int64_t row_end,
                  int64_t kv_head, int64_t head, int64_t query, TopK& top) {
  const LayerCard& layer = plan.request->layer;
  const HeadRule& rule = plan.request->heads[static_cast<size_t>(head)];
  const auto dim = static_cast<size_t>(layer.key_dim);
  const DType dtype = plan.sequence->memory->options().stored_dtype;
  const Ranking ranking = plan.RankingOf(head, query, rows);
  Scratch scratch;
  std::pmr::vector<float> turned(dim, &scratch);
  RowPieces pieces(plan, rows, kv_head, row_begin, row_end);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t position = rows.columns != nullptr ? rows.columns->Position(row) : rows.first_token + row;
    const auto distance = static_cast<double>(plan.positions[static_cast<size_t>(query)] - position);
    const float* vector = plan.Vector(head, query);
    if (distance < static_cast<double>(rule.distance)) {
      std::copy_n(plan.Plain(head, query), dim, turned.data());
      RotateQueryByDistance(layer.rotary, distance, turned.data());
      vector = turned.data();
    }
    const char* const key = pieces.Key(row);
    if (key == nullptr) return;
    float dot;
    DotKeys(dtype, layer.key_dim, absl::MakeConstSpan(&key, 1), vector, &dot);
    top.Push(ranking.Logit(dot, row), rows.first_token + row);
  }
}

}  // namespace

void PieceScan::Begin(const RetrievePlan& plan, int64_t kv_head, absl::Span<const int32_t> heads,
                      absl::Span<const int64_t> queries, absl::Span<const float> floors, TopK* top) {
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
              floors.empty() ? nullptr : floors.data(), top);
}

void PieceScan::Add(const VisibleRows& rows, int64_t row_begin, int64_t row_end) {
  const bool clamped = plan_->request->policy == PositionPolicy::kClamped;
  const int64_t far_end = clamped ? AddNear(rows, row_begin, row_end) : row_end;
  if (far_end <= row_begin) return;
  for (size_t g = 0; g < heads_.size(); ++g) {
    for (size_t i = 0; i < queries_.size(); ++i) {
      rankings_[g * queries_.size() + i] = plan_->RankingOf(heads_[g], queries_[i], rows);
    }
  }
  KeyCodes& coded = *rows.codes->heads[static_cast<size_t>(kv_head_)];
  if (rows.keys == nullptr) {
    sources_.emplace_back(rows, plan_->view->layer, kv_head_, plan_->sequence->memory->options().stored_dtype,
                          plan_->request->layer.key_dim);
    scan_.Add(sources_.back(), coded, row_begin, far_end, rows.first_token, rankings_.data());
    return;
  }
  const KeyRows& keys = *rows.keys->heads[static_cast<size_t>(kv_head_)];
  if (IsCoded(keys.size()) && coded.Extend(keys)) rows.segment->CodesGrew();
  scan_.Add(keys, coded, row_begin, far_end, rows.first_token, rankings_.data());
}

void PieceScan::End() {
  const absl::StatusOr<ScanCounts> counts = scan_.End();
  if (counts.ok()) {
    plan_->sequence->memory->store().scan_counters().Add(*counts);
  } else {
    plan_->errors->Update(counts.status());
  }
  sources_.clear();
}

int64_t PieceScan::AddNear(const VisibleRows& rows, int64_t row_begin, int64_t row_end) {
  // Rows before far_end are beyond every query's and head's distance.
  int64_t far_end = row_begin;
  if (rows.columns == nullptr) {
    int64_t nearest_far = std::numeric_limits<int64_t>::max();
    for (const int32_t head : heads_) {
      const auto reach = static_cast<int64_t>(std::ceil(plan_->request->heads[static_cast<size_t>(head)].distance));
      for (const int64_t query : queries_) {
        nearest_far = std::min(nearest_far, plan_->positions[static_cast<size_t>(query)] - reach + 1);
      }
    }
    far_end = std::clamp(nearest_far - rows.first_token, row_begin, row_end);
  }
  for (size_t g = 0; g < heads_.size(); ++g) {
    for (size_t i = 0; i < queries_.size(); ++i) {
      ScoreClamped(*plan_, rows, far_end, row_end, kv_head_, heads_[g], queries_[i], top_[g * queries_.size() + i]);
    }
  }
  return far_end;
}

PieceScan& ThreadPieceScan() {
  thread_local PieceScan scan;
  return scan;
}

Witnesses::Witnesses(const RetrievePlan& plan, int64_t kv_head, int32_t head, absl::Span<const int64_t> tokens,
                     std::pmr::memory_resource* memory)
    : plan_(&plan),
      head_(head),
      dtype_(plan.sequence->memory->options().stored_dtype),
      owners_(memory),
      keys_(memory),
      rows_(memory),
      read_(memory) {
  if (static_cast<int64_t>(tokens.size()) != plan.request->heads[static_cast<size_t>(head)].top_k) return;
  const size_t row_bytes = RowBytes(dtype_, plan.request->layer.key_dim);
  owners_.reserve(tokens.size());
  keys_.reserve(tokens.size());
  rows_.reserve(tokens.size());
  for (const int64_t token : tokens) {
    const VisibleRows* owner = plan.view->FindVisible(token);
    if (owner == nullptr) {
      keys_.clear();
      return;
    }
    owners_.push_back(owner);
    rows_.push_back(token - owner->first_token);
    keys_.push_back(owner->keys == nullptr ? nullptr
                                           : owner->keys->heads[static_cast<size_t>(kv_head)]->Row(rows_.back()));
    // They lie anywhere; floors are made of them when all heads' have been found.
    if (keys_.back() != nullptr) PrefetchBytes(keys_.back(), row_bytes);
  }
  if (!ReadMissing(kv_head).ok()) keys_.clear();  // unread, they prove nothing
}

absl::Status Witnesses::ReadMissing(int64_t kv_head) {
  std::vector<size_t> missing;
  for (size_t i = 0; i < keys_.size(); ++i) {
    if (keys_[i] == nullptr) missing.push_back(i);
  }
  if (missing.empty()) return absl::OkStatus();
  // By segment: the pieces of one are neighbours.
  std::sort(missing.begin(), missing.end(),
            [&](size_t a, size_t b) { return std::pair(owners_[a], rows_[a]) < std::pair(owners_[b], rows_[b]); });
  const size_t row_bytes = RowBytes(dtype_, plan_->request->layer.key_dim);
  read_.resize(missing.size() * row_bytes);
  std::vector<MissingRow> rows;
  for (size_t i = 0; i < missing.size(); ++i) {
    rows.push_back({owners_[missing[i]]->segment.get(), rows_[missing[i]]});
    keys_[missing[i]] = read_.data() + i * row_bytes;
  }
  return ReadMissingRows(plan_->view->layer, kv_head, RowKind::kKeys, rows, row_bytes, absl::MakeSpan(read_));
}

float Witnesses::Floor(int64_t query) const {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr size_t kBatch = 16;
  if (keys_.empty()) return -kInfinity;
  float worst = kInfinity;
  for (size_t first = 0; first < keys_.size(); first += kBatch) {
    const size_t n = std::min(kBatch, keys_.size() - first);
    float dots[kBatch];
    DotKeys(dtype_, plan_->request->layer.key_dim, absl::MakeConstSpan(keys_).subspan(first, n),
            plan_->Vector(head_, query), dots);
    for (size_t i = 0; i < n; ++i) {
      const float logit = plan_->RankingOf(head_, query, *owners_[first + i]).Logit(dots[i], rows_[first + i]);
      // NaN never enters the k best, so it proves nothing.
      if (logit != logit) return -kInfinity;
      worst = std::min(worst, logit);
    }
  }
  return worst == kInfinity ? -kInfinity : worst;
}

}  // namespace mneme
