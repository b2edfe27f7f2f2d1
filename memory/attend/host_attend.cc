// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/host_attend.h"

#include <algorithm>
#include <cstring>
#include <memory_resource>
#include <utility>

#include "attention/state.h"
#include "base/scratch.h"
#include "base/status.h"
#include "memory/attend/interleaved_attend.h"
#include "memory/attend/memory_search.h"
#include "memory/attend/tile_fusion.h"

namespace mneme {
namespace {

// Query tokens of one work item after the search.
constexpr int64_t kQueriesPerItem = 32;

// Searches the sequence's memory and gathers the values of what was retrieved. may_write: outputs may be written at
// once where that is faster.
// Returns: whether the sequence is done, outputs included.
absl::StatusOr<bool> SearchSequence(SequenceInputs& inputs, bool may_write, Executor& executor,
                                    std::pmr::memory_resource* arena) {
  const AttendRequest& request = *inputs.request;
  if (inputs.sequence->memory == nullptr || request.fusion == Fusion::kLocalOnly) return false;
  if (inputs.device_states != nullptr) return false;
  MNEME_ASSIGN_OR_RETURN(MemoryView view, MakeMemoryView(request.retrieve, *inputs.sequence, true, executor, arena));
  if (view.rows.empty()) return false;
  inputs.top = MakeEmptyResult(request.retrieve, *inputs.sequence, view, arena);
  inputs.view = std::move(view);
  if (may_write && CanInterleave(inputs)) {
    MNEME_RETURN_IF_ERROR(AttendInterleaved(inputs, executor));
    return true;
  }
  const absl::Span<TopK> top = absl::MakeSpan(inputs.top);
  MNEME_RETURN_IF_ERROR(SearchMemory(request.retrieve, *inputs.sequence, *inputs.view, executor, top));
  MNEME_ASSIGN_OR_RETURN(inputs.values,
                         GatheredRows::Read(*inputs.view, request.retrieve.layer, RowKind::kValues,
                                            inputs.sequence->memory->options().stored_dtype, top, executor));
  return false;
}

// Writes empty states.
void ClearOutputs(const AttendRequest& request, const Sequence& sequence) {
  const LayerCard& layer = request.retrieve.layer;
  const size_t bytes = static_cast<size_t>(layer.value_dim) * DTypeSize(request.output.dtype);
  for (int64_t token = sequence.query_begin; token < sequence.query_end; ++token) {
    for (int64_t head = 0; head < layer.query_heads; ++head) {
      const int64_t slot = token * layer.query_heads + head;
      std::memset(request.output.Row(token, head), 0, bytes);
      if (request.log_sum_exp != nullptr) request.log_sum_exp[slot] = kEmptyLogSumExp;
      if (request.memory_mass != nullptr) request.memory_mass[slot] = 0;
      if (request.retrieved_stride > 0) ReportRetrieved(request, slot, {});
    }
  }
}

// Local attention and fusion of a tile whose retrieved rows are complete.
void AttendTile(SequenceInputs& inputs, const Tile& tile) {
  const LayerCard& layer = inputs.request->retrieve.layer;
  const auto states = static_cast<size_t>(tile.queries() * layer.group());
  Scratch scratch;
  std::pmr::vector<float> outputs(states * static_cast<size_t>(layer.value_dim), &scratch);
  std::pmr::vector<float> log_sum_exps(states, &scratch);
  const TileStates local{outputs.data(), log_sum_exps.data()};
  TileFusion fusion(inputs, tile, &scratch);
  fusion.LocateValues();
  AttendLocalTile(*inputs.request, *inputs.sequence, tile, local);
  fusion.Fuse(local);
}

// The same for all tiles of all sequences.
void AttendTiles(const LayerCard& layer, absl::Span<SequenceInputs> all_inputs, Executor& executor,
                 std::pmr::memory_resource* arena) {
  struct Item {
    SequenceInputs* inputs;
    Tile tile;
  };
  const auto queries_of = [](const SequenceInputs& inputs) {
    return inputs.sequence->query_end - inputs.sequence->query_begin;
  };
  std::pmr::vector<Item> items(arena);
  int64_t tiles = 0;
  for (const SequenceInputs& inputs : all_inputs) tiles += (queries_of(inputs) + kQueriesPerItem - 1) / kQueriesPerItem;
  items.reserve(static_cast<size_t>(layer.kv_heads * tiles));
  for (SequenceInputs& inputs : all_inputs) {
    const int64_t queries = queries_of(inputs);
    for (int64_t kv_head = 0; kv_head < layer.kv_heads; ++kv_head) {
      for (int64_t query = 0; query < queries; query += kQueriesPerItem) {
        items.push_back({&inputs, {kv_head, query, std::min(queries, query + kQueriesPerItem)}});
      }
    }
  }
  executor.ParallelFor(items.size(), [&](size_t i) { AttendTile(*items[i].inputs, items[i].tile); });
}

}  // namespace

absl::Status AttendOnHost(const AttendRequest& request, absl::Span<const std::optional<RetrievedStates>> device_states,
                          Executor& executor) {
  const absl::Span<const Sequence> sequences = request.retrieve.sequences;
  Scratch scratch;
  std::pmr::vector<SequenceInputs> unfinished(&scratch);
  unfinished.reserve(sequences.size());
  // Without statuses the error of one sequence ends the call, which must not have written any output by then.
  const bool may_write = sequences.size() == 1 || !request.statuses.empty();
  for (size_t i = 0; i < sequences.size(); ++i) {
    SequenceInputs inputs{.request = &request,
                          .sequence = &sequences[i],
                          .device_states = device_states.empty() || !device_states[i] ? nullptr : &*device_states[i],
                          .view = std::nullopt,
                          .top = std::pmr::vector<TopK>(&scratch),
                          .values = {}};
    if (HasFailed(request, i)) {
      ClearOutputs(request, sequences[i]);
      continue;
    }
    const absl::StatusOr<bool> done = SearchSequence(inputs, may_write, executor, &scratch);
    if (!request.statuses.empty()) request.statuses[i] = done.status();
    if (done.ok()) {
      if (!*done) unfinished.push_back(std::move(inputs));
      continue;
    }
    if (request.statuses.empty()) return done.status();
    ClearOutputs(request, sequences[i]);
  }
  AttendTiles(request.retrieve.layer, absl::MakeSpan(unfinished), executor, &scratch);
  return absl::OkStatus();
}

}  // namespace mneme
