// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/search_plan.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

#include "attention/rotary.h"
#include "base/scratch.h"
#include "base/status.h"
#include "memory/attend/argument_error.h"
#include "memory/store_context.h"

namespace mneme {
namespace {

// With fewer queries one thread prepares all vectors sooner than several would start.
constexpr int64_t kFewestQueriesForThreads = 16;
constexpr int64_t kMostAges = int64_t{1} << 31;

// Converts one query to f32, normalises it if asked, and rotates it by the position policy.
// plain: kClamped: receives the vector before the rotation. head_turn: the rotation by the head's distance.
void PrepareVector(const SearchPlan& plan, int64_t head, int64_t query, const RotaryTurn& head_turn, float* vector,
                   float* plain) {
  const RetrieveRequest& request = *plan.request;
  const auto dim = static_cast<size_t>(request.layer.key_dim);
  const RowTensor& tensor = request.memory_query;
  ConvertToF32(tensor.dtype, tensor.Row(plan.sequence->query_begin + query, head), vector, dim);
  if (request.normalise_query) {
    double squares = 1e-6;
    for (size_t i = 0; i < dim; ++i) squares += static_cast<double>(vector[i]) * vector[i];
    const auto factor = static_cast<float>(1.0 / std::sqrt(squares));
    for (size_t i = 0; i < dim; ++i) vector[i] *= factor;
  }
  switch (request.policy) {
    case PositionPolicy::kAsStored: break;
    case PositionPolicy::kClamped:
      std::copy(vector, vector + dim, plain);
      head_turn.Apply(vector);
      break;
    case PositionPolicy::kFixedDistance: head_turn.Apply(vector); break;
    case PositionPolicy::kWindowStart:
      RotateQueryByDistance(request.layer.rotary,
                            static_cast<double>(request.query_local_positions[plan.sequence->query_begin + query]),
                            vector);
      break;
  }
}

void PrepareHead(SearchPlan& plan, int64_t head) {
  const RetrieveRequest& request = *plan.request;
  const bool clamped = request.policy == PositionPolicy::kClamped;
  const bool rotates = clamped || request.policy == PositionPolicy::kFixedDistance;
  Scratch scratch;
  const RotaryTurn turn = rotates
                              ? RotaryTurn::OfQueryByDistance(
                                    request.layer.rotary, request.heads[static_cast<size_t>(head)].distance, &scratch)
                              : RotaryTurn();
  for (int64_t query = 0; query < plan.queries; ++query) {
    const int64_t at = (head * plan.queries + query) * request.layer.key_dim;
    PrepareVector(plan, head, query, turn, plan.vectors.data() + at,
                  clamped ? plan.plain_vectors.data() + at : nullptr);
  }
}

void PrepareVectors(SearchPlan& plan, Executor& executor) {
  const LayerCard& layer = plan.request->layer;
  plan.vectors.resize(static_cast<size_t>(layer.query_heads * plan.queries * layer.key_dim));
  if (plan.request->policy == PositionPolicy::kClamped) plan.plain_vectors.resize(plan.vectors.size());
  if (plan.queries >= kFewestQueriesForThreads) {
    executor.ParallelFor(plan.heads.size(), [&](size_t i) { PrepareHead(plan, plan.heads[i]); });
  } else {
    for (const int32_t head : plan.heads) PrepareHead(plan, head);
  }
}

absl::Status GetPenalties(SearchPlan& plan) {
  const std::pmr::vector<VisibleRows>& rows = plan.view->rows;
  const auto [least, greatest] = std::minmax_element(plan.positions.begin(), plan.positions.end());
  // Pinned rows have no decay. The ages of evicted rows behind them would make the table long.
  const auto first = std::find_if(rows.begin(), rows.end(), [](const VisibleRows& range) { return !range.pinned; });
  // Row 0 of a segment may stand before the first visible row, and ForRows starts from it.
  const int64_t first_token = first == rows.end() ? rows.back().token_end() : first->first_token;
  const int64_t token_end = rows.back().token_end();
  const int64_t ages = *greatest - *least + token_end - first_token;
  if (ages > kMostAges) {
    return ArgumentError({.argument = Argument::kQueryPositions,
                          .expected = "positions within 2^31 tokens of each other, because a head has decay",
                          .got = absl::StrCat("a span of ", ages),
                          .code = absl::StatusCode::kInvalidArgument});
  }
  plan.penalties = plan.sequence->memory->context().age_penalties().Get(*least - token_end, *greatest - first_token,
                                                                        plan.request->decay_beyond);
  return absl::OkStatus();
}

}  // namespace

absl::Span<const int32_t> SearchPlan::HeadsOf(int64_t kv_head) const {
  const int64_t group = request->layer.group();
  const auto first = std::lower_bound(heads.begin(), heads.end(), kv_head * group);
  const auto last = std::lower_bound(first, heads.end(), (kv_head + 1) * group);
  return absl::MakeConstSpan(heads).subspan(static_cast<size_t>(first - heads.begin()),
                                            static_cast<size_t>(last - first));
}

absl::Status FillSearchPlan(SearchPlan& plan, Executor& executor) {
  const RetrieveRequest& request = *plan.request;
  const Sequence& sequence = *plan.sequence;
  plan.queries = sequence.query_end - sequence.query_begin;
  if (plan.queries == 0 || plan.view->rows.empty()) return absl::OkStatus();
  bool decays = false;
  plan.heads.reserve(request.heads.size());
  for (size_t head = 0; head < request.heads.size(); ++head) {
    if (request.heads[head].top_k == 0) continue;
    plan.heads.push_back(static_cast<int32_t>(head));
    decays |= request.heads[head].decay > 0;
  }
  if (plan.heads.empty()) return absl::OkStatus();
  plan.positions.reserve(static_cast<size_t>(plan.queries));
  for (int64_t query = 0; query < plan.queries; ++query) {
    plan.positions.push_back(QueryPosition(request, sequence, plan.view->end, sequence.query_begin + query));
  }
  if (decays) MNEME_RETURN_IF_ERROR(GetPenalties(plan));
  PrepareVectors(plan, executor);
  return absl::OkStatus();
}

}  // namespace mneme
