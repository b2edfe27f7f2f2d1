// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/interleaved_attend.h"

#include <algorithm>
#include <atomic>
#include <memory_resource>
#include <vector>

#include "attention/state.h"
#include "base/scratch.h"
#include "base/status.h"
#include "memory/attend/interleaved_schedule.h"
#include "memory/attend/memory_search.h"

namespace mneme {
namespace {

constexpr int64_t kMostQueries = 8;
constexpr int64_t kMostRows = int64_t{1} << 14;  // retrieved by one query, in all heads

// Local states and fusion of each KV head, and how many items they wait for.
class HeadFusions {
 public:
  HeadFusions(SequenceInputs& inputs, const MemorySearch& search, bool has_local, std::pmr::memory_resource* arena)
      : inputs_(inputs),
        queries_(inputs.sequence->query_end - inputs.sequence->query_begin),
        states_(static_cast<size_t>(queries_ * inputs.request->retrieve.layer.group())),
        outputs_(arena),
        log_sum_exps_(arena),
        fusions_(arena),
        searches_left_(static_cast<size_t>(inputs.request->retrieve.layer.kv_heads), arena),
        steps_left_(searches_left_.size(), arena) {
    const LayerCard& layer = inputs.request->retrieve.layer;
    const auto kv_heads = static_cast<size_t>(layer.kv_heads);
    outputs_.resize(kv_heads * states_ * static_cast<size_t>(layer.value_dim));
    log_sum_exps_.resize(kv_heads * states_, kEmptyLogSumExp);
    fusions_.reserve(kv_heads);
    for (int64_t head = 0; head < layer.kv_heads; ++head) fusions_.emplace_back(inputs, Tile{head, 0, queries_}, arena);
    for (size_t i = 0; i < search.item_count(); ++i) ++searches_left_[static_cast<size_t>(search.KvHeadOf(i))];
    for (std::atomic<int>& left : steps_left_) left = has_local ? 2 : 1;
  }

  // An item of the search has run. The last one of a KV head completes that head's rows.
  void OnSearched(size_t kv_head) {
    if (--searches_left_[kv_head] == 0) EndStep(kv_head, /*located=*/false);
  }

  void AttendLocal(size_t kv_head) {
    // If the rows are complete, their values arrive during local attention.
    const bool searched = steps_left_[kv_head] == 1;
    if (searched) fusions_[kv_head].LocateValues();
    AttendLocalTile(*inputs_.request, *inputs_.sequence, {static_cast<int64_t>(kv_head), 0, queries_},
                    StatesOf(kv_head));
    EndStep(kv_head, searched);
  }

 private:
  TileStates StatesOf(size_t kv_head) {
    const auto value_dim = static_cast<size_t>(inputs_.request->retrieve.layer.value_dim);
    return {outputs_.data() + kv_head * states_ * value_dim, log_sum_exps_.data() + kv_head * states_};
  }

  // The search or the local attention of a KV head has ended. The second one to end fuses both.
  void EndStep(size_t kv_head, bool located) {
    if (--steps_left_[kv_head] > 0) return;
    if (!located) fusions_[kv_head].LocateValues();
    fusions_[kv_head].Fuse(StatesOf(kv_head));
  }

  SequenceInputs& inputs_;
  const int64_t queries_;
  const size_t states_;                                  // of one KV head: queries * group
  std::pmr::vector<float> outputs_;                      // [kv_heads][states][value_dim]
  std::pmr::vector<float> log_sum_exps_;                 // [kv_heads][states]
  std::pmr::vector<TileFusion> fusions_;                 // [kv_heads]
  std::pmr::vector<std::atomic<size_t>> searches_left_;  // [kv_heads]: items that have not run
  std::pmr::vector<std::atomic<int>> steps_left_;        // [kv_heads]: of search and local attention
};

}  // namespace

bool CanInterleave(const SequenceInputs& inputs) {
  const MemoryView& view = *inputs.view;
  const int64_t queries = inputs.sequence->query_end - inputs.sequence->query_begin;
  const int64_t visible = view.RowCount();
  int64_t rows = 0;
  for (const HeadRule& head : inputs.request->retrieve.heads) rows += std::min(head.top_k, visible);
  return queries > 0 && queries <= kMostQueries && rows > 0 && rows <= kMostRows && view.snapshot.state->runs.empty() &&
         std::all_of(view.rows.begin(), view.rows.end(),
                     [](const VisibleRows& range) { return range.keys != nullptr && range.values != nullptr; });
}

absl::Status AttendInterleaved(SequenceInputs& inputs, Executor& executor) {
  Scratch scratch;
  MemorySearch search(inputs.request->retrieve, *inputs.sequence, *inputs.view, absl::MakeSpan(inputs.top), &scratch);
  MNEME_RETURN_IF_ERROR(search.Prepare(executor));
  const bool has_local = HasLocalRows(*inputs.request, *inputs.sequence);
  HeadFusions heads(inputs, search, has_local, &scratch);
  const auto locals = has_local ? static_cast<size_t>(inputs.request->retrieve.layer.kv_heads) : 0;
  const InterleavedSchedule schedule(search.item_count(), locals, executor.Width());
  executor.ParallelFor(schedule.size(), [&](size_t i) {
    const InterleavedSchedule::Item item = schedule.At(i);
    if (item.is_search) {
      search.RunItem(item.number);
      heads.OnSearched(static_cast<size_t>(search.KvHeadOf(item.number)));
    } else {
      heads.AttendLocal(item.number);
    }
  });
  return search.Finish();
}

}  // namespace mneme
