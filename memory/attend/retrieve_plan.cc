// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/retrieve_plan.h"

#include <algorithm>
#include <cmath>

#include "attention/rotary.h"
#include "base/scratch.h"

namespace mneme {
namespace {

void PrepareVector(const RetrievePlan& plan, int64_t head, int64_t query, float* vector, float* plain,
                   const RotaryTurn& head_turn) {
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

}  // namespace

void PrepareVectors(RetrievePlan& plan, Executor& executor) {
  const RetrieveRequest& request = *plan.request;
  const int64_t dim = request.layer.key_dim;
  plan.vectors.resize(static_cast<size_t>(request.layer.query_heads * plan.queries * dim));
  if (request.policy == PositionPolicy::kClamped) plan.plain.resize(plan.vectors.size());
  const auto prepare = [&](size_t i) {
    const int64_t head = plan.heads[i];
    const bool turns = request.policy == PositionPolicy::kFixedDistance || request.policy == PositionPolicy::kClamped;
    Scratch scratch;
    const RotaryTurn turn = turns
                                ? RotaryTurn::OfQueryByDistance(
                                      request.layer.rotary, request.heads[static_cast<size_t>(head)].distance, &scratch)
                                : RotaryTurn();
    for (int64_t query = 0; query < plan.queries; ++query) {
      const int64_t at = (head * plan.queries + query) * dim;
      PrepareVector(plan, head, query, plan.vectors.data() + at, plan.plain.empty() ? nullptr : plan.plain.data() + at,
                    turn);
    }
  };
  if (plan.queries >= 16) {
    executor.ParallelFor(plan.heads.size(), prepare);
  } else {
    for (size_t i = 0; i < plan.heads.size(); ++i) prepare(i);
  }
}

}  // namespace mneme
