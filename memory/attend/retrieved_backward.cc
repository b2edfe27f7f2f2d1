// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/retrieved_backward.h"

#include <algorithm>
#include <cmath>

#include "attention/retrieved.h"
#include "attention/state.h"
#include "base/prefetch.h"
#include "base/scratch.h"

namespace mneme {
namespace {

// AttendRetrieved and AddRows take rows as untyped pointers.
const void* const* Untyped(const std::pmr::vector<const char*>& rows) {
  return reinterpret_cast<const void* const*>(rows.data());
}

}  // namespace

RetrievedBackward::RetrievedBackward(const ReportedRows& rows, int64_t kv_head, std::pmr::memory_resource* arena)
    : reported_(rows),
      request_(*rows.plan().request),
      sequence_(*rows.plan().sequence),
      stored_(rows.plan().stored_dtype()),
      kv_head_(kv_head),
      turns_(arena),
      rows_(arena),
      dots_(arena),
      logits_(arena),
      weights_(arena),
      products_(arena),
      keys_(arena),
      values_(arena),
      output_(static_cast<size_t>(request_.layer.value_dim), arena),
      rotated_back_(static_cast<size_t>(request_.layer.key_dim), arena),
      one_key_(static_cast<size_t>(request_.layer.key_dim), arena) {
  const auto most = static_cast<size_t>(rows.most_tokens());
  rows_.reserve(most);
  for (auto* floats : {&dots_, &logits_, &weights_, &products_}) floats->reserve(most);
  keys_.reserve(most);
  values_.reserve(most);
  if (request_.policy != PositionPolicy::kFixedDistance && request_.policy != PositionPolicy::kClamped) return;
  const int64_t group = request_.layer.group();
  turns_.reserve(static_cast<size_t>(group));
  for (int64_t g = 0; g < group; ++g) {
    const HeadRule& rule = request_.heads[static_cast<size_t>(kv_head * group + g)];
    turns_.push_back(RotaryTurn::OfQueryByDistance(request_.layer.rotary, static_cast<double>(rule.distance), arena));
  }
}

void RetrievedBackward::Locate(int64_t token) {
  const VisibleRows& owner = reported_.Owner(token);
  Row& row = rows_.emplace_back();
  row.owner = &owner;
  row.number = token - owner.first_token;
  keys_.push_back(reported_.Key(kv_head_, token));
  values_.push_back(reported_.Value(kv_head_, token));
  // Rows lie anywhere in memory. All of them are on their way before the first is read.
  PrefetchBytes(keys_.back(), RowBytes(stored_, request_.layer.key_dim));
  PrefetchBytes(values_.back(), RowBytes(stored_, request_.layer.value_dim));
  if (request_.policy != PositionPolicy::kClamped) return;
  const int64_t position = owner.columns != nullptr ? owner.columns->Position(row.number) : token;
  row.distance = static_cast<double>(reported_.plan().positions[static_cast<size_t>(query_)] - position);
  row.near = row.distance < static_cast<double>(request_.heads[static_cast<size_t>(head_)].distance);
}

float RetrievedBackward::DotOfNearRow(size_t i) {
  std::copy_n(reported_.plan().PlainVector(head_, query_), one_key_.size(), one_key_.data());
  RotateQueryByDistance(request_.layer.rotary, rows_[i].distance, one_key_.data());
  float dot;
  DotKeys(stored_, request_.layer.key_dim, absl::MakeConstSpan(&keys_[i], 1), one_key_.data(), &dot);
  return dot;
}

float RetrievedBackward::Attend(int64_t query, int64_t head) {
  const SearchPlan& plan = reported_.plan();
  query_ = query;
  head_ = head;
  rows_.clear();
  keys_.clear();
  values_.clear();
  for (const int64_t token : reported_.Tokens(query, head)) Locate(token);
  dots_.resize(rows_.size());
  logits_.resize(rows_.size());
  if (!rows_.empty()) {
    DotKeys(stored_, request_.layer.key_dim, keys_, plan.Vector(head, query), dots_.data());
  }
  for (size_t i = 0; i < rows_.size(); ++i) {
    Row& row = rows_[i];
    if (row.near) dots_[i] = DotOfNearRow(i);
    const Ranking ranking = plan.RankingOf(head, query, *row.owner);
    logits_[i] = ranking.Logit(dots_[i], row.number);
    const float bent = ranking.soft_cap > 0 ? std::tanh(dots_[i] * ranking.scale / ranking.soft_cap) : 0.0f;
    row.slope = 1 - bent * bent;
  }
  log_sum_exp_ = AttendRetrieved(logits_.data(), Untyped(values_), static_cast<int64_t>(rows_.size()), stored_,
                                 request_.layer.value_dim, output_.data());
  return log_sum_exp_;
}

void RetrievedBackward::AddGradients(const float* output_gradient, float offset, Sums& sums) {
  if (rows_.empty() || log_sum_exp_ == kEmptyLogSumExp) return;
  const float scale = request_.heads[static_cast<size_t>(head_)].scale;
  products_.resize(rows_.size());
  weights_.resize(rows_.size());
  DotKeys(stored_, request_.layer.value_dim, values_, output_gradient, products_.data());
  for (size_t i = 0; i < rows_.size(); ++i) {
    const float by_logit = std::exp(logits_[i] - log_sum_exp_) * (products_[i] - offset);
    const float by_score = by_logit * rows_[i].slope;
    if (request_.use_memory_bias && !rows_[i].owner->pinned) sums.memory_bias += static_cast<double>(by_logit);
    sums.scale += static_cast<double>(by_score) * static_cast<double>(dots_[i]);
    weights_[i] = by_score * scale;
  }
  if (sums.memory_query == nullptr) return;
  AddKeys();
  AddThroughNormalisation(sums.memory_query);
}

void RetrievedBackward::AddKeys() {
  const int64_t dim = request_.layer.key_dim;
  std::fill(rotated_back_.begin(), rotated_back_.end(), 0.0f);
  if (request_.policy != PositionPolicy::kClamped) {
    AddRows(weights_.data(), Untyped(keys_), static_cast<int64_t>(rows_.size()), stored_, dim, rotated_back_.data());
    RotateBack(rotated_back_.data());
    return;
  }
  // Far rows share one rotation, and each near row has one of its own.
  for (size_t i = 0; i < rows_.size(); ++i) {
    if (rows_[i].near) continue;
    const void* const key = keys_[i];
    AddRows(&weights_[i], &key, 1, stored_, dim, rotated_back_.data());
  }
  RotateBack(rotated_back_.data());
  for (size_t i = 0; i < rows_.size(); ++i) {
    if (!rows_[i].near) continue;
    std::fill(one_key_.begin(), one_key_.end(), 0.0f);
    const void* const key = keys_[i];
    AddRows(&weights_[i], &key, 1, stored_, dim, one_key_.data());
    Scratch scratch;
    RotaryTurn::OfQueryByDistance(request_.layer.rotary, rows_[i].distance, &scratch).ApplyTransposed(one_key_.data());
    for (size_t d = 0; d < one_key_.size(); ++d) rotated_back_[d] += one_key_[d];
  }
}

void RetrievedBackward::RotateBack(float* gradient) const {
  switch (request_.policy) {
    case PositionPolicy::kAsStored: return;
    case PositionPolicy::kFixedDistance:
    case PositionPolicy::kClamped:
      turns_[static_cast<size_t>(head_ - kv_head_ * request_.layer.group())].ApplyTransposed(gradient);
      return;
    case PositionPolicy::kWindowStart: break;
  }
  Scratch scratch;
  const auto position = static_cast<double>(request_.query_local_positions[sequence_.query_begin + query_]);
  RotaryTurn::OfQueryByDistance(request_.layer.rotary, position, &scratch).ApplyTransposed(gradient);
}

void RetrievedBackward::AddThroughNormalisation(float* gradient) const {
  if (!request_.normalise_query) {
    for (size_t i = 0; i < rotated_back_.size(); ++i) gradient[i] += rotated_back_[i];
    return;
  }
  // x / n with n = sqrt(|x|² + 1e-6) has the gradient (g - x (x·g) / n²) / n.
  Scratch scratch;
  std::pmr::vector<float> query(rotated_back_.size(), &scratch);
  const RowTensor& tensor = request_.memory_query;
  ConvertToF32(tensor.dtype, tensor.Row(sequence_.query_begin + query_, head_), query.data(), query.size());
  double squares = 1e-6, product = 0;
  for (size_t i = 0; i < query.size(); ++i) {
    squares += static_cast<double>(query[i]) * static_cast<double>(query[i]);
    product += static_cast<double>(query[i]) * static_cast<double>(rotated_back_[i]);
  }
  const double along = product / squares, norm = std::sqrt(squares);
  for (size_t i = 0; i < query.size(); ++i) {
    gradient[i] +=
        static_cast<float>((static_cast<double>(rotated_back_[i]) - along * static_cast<double>(query[i])) / norm);
  }
}

}  // namespace mneme
