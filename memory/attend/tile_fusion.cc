// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/tile_fusion.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/retrieved.h"
#include "attention/state.h"
#include "base/prefetch.h"

namespace mneme {
namespace {

float Sigmoid(float x) {
  return 1.0f / (1.0f + std::exp(-x));
}

// Returns: the memory's share of the attention mass of two states; 0 if both are empty.
float MassOf(float memory_log_sum_exp, float local_log_sum_exp) {
  if (memory_log_sum_exp == kEmptyLogSumExp) return 0.0f;
  if (local_log_sum_exp == kEmptyLogSumExp) return 1.0f;
  return Sigmoid(memory_log_sum_exp - local_log_sum_exp);
}

// Returns: log(exp(a) + exp(b)).
float LogSumExp(float a, float b) {
  if (a == kEmptyLogSumExp) return b;
  if (b == kEmptyLogSumExp) return a;
  return std::max(a, b) + std::log1p(std::exp(-std::fabs(b - a)));
}

}  // namespace

TileFusion::TileFusion(SequenceInputs& inputs, const Tile& tile, std::pmr::memory_resource* arena)
    : inputs_(inputs),
      tile_(tile),
      retrieves_(inputs.device_states == nullptr && inputs.view.has_value()),
      memory_output_(static_cast<size_t>(inputs.request->retrieve.layer.value_dim), arena),
      retrieved_(arena) {
  if (!retrieves_) return;
  const int64_t group = inputs.request->retrieve.layer.group();
  const int64_t rows = inputs.view->RowCount();
  retrieved_.reserve(static_cast<size_t>(group));
  for (int64_t g = 0; g < group; ++g) {
    const HeadRule& rule = inputs.request->retrieve.heads[static_cast<size_t>(HeadOf(g))];
    retrieved_.emplace_back(static_cast<size_t>(std::min(rule.top_k, rows)), arena);
  }
}

int64_t TileFusion::HeadOf(int64_t g) const {
  return tile_.kv_head * inputs_.request->retrieve.layer.group() + g;
}

void TileFusion::LocateValues() {
  for (size_t g = 0; g < retrieved_.size(); ++g) LocateValuesOf(tile_.query_begin, static_cast<int64_t>(g));
}

void TileFusion::Fuse(const TileStates& local) {
  const int64_t group = inputs_.request->retrieve.layer.group();
  for (int64_t query = tile_.query_begin; query < tile_.query_end; ++query) {
    for (int64_t g = 0; g < group; ++g) FuseOne(query, g, local);
  }
}

void TileFusion::LocateValuesOf(int64_t query, int64_t g) {
  const LayerCard& layer = inputs_.request->retrieve.layer;
  Retrieved& retrieved = retrieved_[static_cast<size_t>(g)];
  retrieved.rows = inputs_.top[static_cast<size_t>(query * layer.query_heads + HeadOf(g))].Sorted();
  retrieved.values.resize(retrieved.rows.size());
  retrieved.logits.resize(retrieved.rows.size());
  const size_t bytes = RowBytes(inputs_.sequence->memory->options().stored_dtype, layer.value_dim);
  for (size_t i = 0; i < retrieved.rows.size(); ++i) {
    const char* const row = inputs_.values.Row(*inputs_.view, tile_.kv_head, retrieved.rows[i].index);
    retrieved.values[i] = row;
    retrieved.logits[i] = retrieved.rows[i].score;
    PrefetchBytes(row, bytes);
  }
}

float TileFusion::AttendRetrievedRows(int64_t query, int64_t g, absl::Span<const Scored>* rows) {
  const LayerCard& layer = inputs_.request->retrieve.layer;
  if (inputs_.device_states != nullptr) {
    const RetrievedStates& states = *inputs_.device_states;
    const auto slot = static_cast<size_t>(query * layer.query_heads + HeadOf(g));
    *rows = states.RowsOf(slot);
    std::copy_n(states.outputs.data() + slot * static_cast<size_t>(layer.value_dim), layer.value_dim,
                memory_output_.data());
    return states.log_sum_exp[slot];
  }
  if (!retrieves_) {
    std::fill(memory_output_.begin(), memory_output_.end(), 0.0f);
    return kEmptyLogSumExp;
  }
  const Retrieved& retrieved = retrieved_[static_cast<size_t>(g)];
  *rows = retrieved.rows;
  const float log_sum_exp =
      AttendRetrieved(retrieved.logits.data(), retrieved.values.data(), static_cast<int64_t>(retrieved.rows.size()),
                      inputs_.sequence->memory->options().stored_dtype, layer.value_dim, memory_output_.data());
  // The next query's values arrive while the other heads of this query are summed.
  if (query + 1 < tile_.query_end) LocateValuesOf(query + 1, g);
  return log_sum_exp;
}

void TileFusion::FuseOne(int64_t query, int64_t g, const TileStates& local) {
  const AttendRequest& request = *inputs_.request;
  const LayerCard& layer = request.retrieve.layer;
  const int64_t dim = layer.value_dim;
  const int64_t head = HeadOf(g);
  const int64_t token = inputs_.sequence->query_begin + query;
  const int64_t slot = token * layer.query_heads + head;
  const int64_t at = (query - tile_.query_begin) * layer.group() + g;
  float* const output = local.outputs + at * dim;
  float lse = local.log_sum_exps[at];
  absl::Span<const Scored> rows;
  const float memory_lse = AttendRetrievedRows(query, g, &rows);
  float mass = MassOf(memory_lse, lse);
  switch (request.fusion) {
    case Fusion::kJoint:
    case Fusion::kMemoryOnly: MergeState(output, &lse, memory_output_.data(), memory_lse, dim); break;
    case Fusion::kGated: {
      const float gate = request.retrieve.heads[static_cast<size_t>(head)].gate;
      GateState(output, memory_output_.data(), gate, dim);
      mass = memory_lse == kEmptyLogSumExp ? 0.0f : Sigmoid(gate);
      // As in joint fusion, so that a host can merge the result with further states.
      lse = LogSumExp(lse, memory_lse);
      break;
    }
    case Fusion::kLocalOnly: break;
  }
  ConvertFromF32(output, request.output.dtype, request.output.Row(token, head), static_cast<size_t>(dim));
  if (request.log_sum_exp != nullptr) request.log_sum_exp[slot] = lse;
  if (request.memory_mass != nullptr) request.memory_mass[slot] = mass;
  if (request.retrieved_stride > 0) ReportRetrieved(request, slot, rows);
}

void ReportRetrieved(const AttendRequest& request, int64_t slot, absl::Span<const Scored> rows) {
  const int64_t stride = request.retrieved_stride;
  const auto count = static_cast<int64_t>(rows.size());
  for (int64_t i = 0; i < stride; ++i) {
    const Scored row = i < count ? rows[static_cast<size_t>(i)] : Scored{-std::numeric_limits<float>::infinity(), -1};
    if (request.retrieved_tokens != nullptr) request.retrieved_tokens[slot * stride + i] = row.index;
    if (request.retrieved_scores != nullptr) request.retrieved_scores[slot * stride + i] = row.score;
  }
}

}  // namespace mneme
