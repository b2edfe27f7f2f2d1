// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/attend.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory_resource>
#include <optional>
#include <utility>

#include "attention/retrieved.h"
#include "attention/state.h"
#include "base/prefetch.h"
#include "base/scratch.h"
#include "base/status.h"
#include "memory/attend/gathered_rows.h"
#include "memory/attend/retrieve.h"
#include "memory/device/device_attend.h"
#include "memory/store.h"

namespace mneme {
namespace {

// Query tokens of one work item of what comes after a search.
constexpr int64_t kQueriesPerItem = 32;
// See MayFuseEarly.
constexpr int64_t kFewQueries = 8;
constexpr int64_t kFewRows = int64_t{1} << 14;  // of all heads

// What the work items of one sequence share.
struct SequencePlan {
  const AttendRequest* request;
  const Sequence* sequence;
  const DeviceAnswer* answer;      // what a device made of the memory, instead of the below; null: nothing
  std::optional<MemoryView> view;  // none: no memory, or nothing to see
  std::pmr::vector<TopK> top;      // [queries][query_heads], if there is a view
  GatheredRows values;             // of these rows
  bool fused;                      // whether all of it is done
};

// A tile: some of a sequence's queries (numbers within it), of the query heads of one KV head.
struct Tile {
  int64_t kv_head, query_begin, query_end;

  int64_t queries() const { return query_end - query_begin; }
};

// Where local attention of a tile goes.
struct LocalStates {
  float* outputs;       // [queries][group][value_dim]
  float* log_sum_exps;  // [queries][group]
};

float Sigmoid(float x) {
  return 1.0f / (1.0f + std::exp(-x));
}

// Memory's share of the mass of two states; 0 if both are empty.
float MassOf(float memory_log_sum_exp, float other_log_sum_exp) {
  if (memory_log_sum_exp == kEmptyLogSumExp) return 0.0f;
  if (other_log_sum_exp == kEmptyLogSumExp) return 1.0f;
  return Sigmoid(memory_log_sum_exp - other_log_sum_exp);
}

// What one (query, head) retrieved: the values' rows, and which they are.
struct Found {
  // With room for so many.
  Found(size_t most, std::pmr::memory_resource* memory) : values(memory), logits(memory) {
    values.reserve(most);
    logits.reserve(most);
  }
  absl::Span<const Scored> rows;
  std::pmr::vector<const void*> values;
  std::pmr::vector<float> logits;
};

// Finds the values of what one (query, head) retrieved, and asks for them: they lie anywhere.
void GatherValues(SequencePlan& plan, int64_t kv_head, int64_t query, int64_t head, Found& found) {
  const LayerCard& layer = plan.request->retrieve.layer;
  found.rows = plan.top[static_cast<size_t>(query * layer.query_heads + head)].Sorted();
  found.values.resize(found.rows.size());
  found.logits.resize(found.rows.size());
  const size_t bytes = RowBytes(plan.sequence->memory->options().stored_dtype, layer.value_dim);
  for (size_t i = 0; i < found.rows.size(); ++i) {
    const char* const row = plan.values.Row(*plan.view, kv_head, found.rows[i].index);
    found.values[i] = row;
    found.logits[i] = found.rows[i].score;
    PrefetchBytes(row, bytes);
  }
}

// Softmax over it.
float AttendFound(const SequencePlan& plan, const Found& found, float* output) {
  return AttendRetrieved(found.logits.data(), found.values.data(), static_cast<int64_t>(found.rows.size()),
                         plan.sequence->memory->options().stored_dtype, plan.request->retrieve.layer.value_dim, output);
}

// Whether there are local rows to attend to.
bool HasLocal(const SequencePlan& plan) {
  return plan.request->fusion != Fusion::kMemoryOnly && plan.request->local_keys.data != nullptr &&
         plan.sequence->local_end > plan.sequence->local_begin;
}

// Local attention of a tile; nothing, where there is none.
void AttendLocalTile(const SequencePlan& plan, const Tile& tile, const LocalStates& local) {
  const AttendRequest& request = *plan.request;
  const LayerCard& layer = request.retrieve.layer;
  const int64_t group = layer.group();
  const auto dim = static_cast<size_t>(layer.key_dim);
  if (!HasLocal(plan)) {
    std::fill_n(local.outputs, tile.queries() * group * layer.value_dim, 0.0f);
    std::fill_n(local.log_sum_exps, tile.queries() * group, kEmptyLogSumExp);
    return;
  }
  Scratch scratch;
  std::pmr::vector<float> queries(static_cast<size_t>(tile.queries() * group) * dim, &scratch);
  std::pmr::vector<float> scales(static_cast<size_t>(group), &scratch);
  for (int64_t g = 0; g < group; ++g) {
    const int64_t head = tile.kv_head * group + g;
    scales[static_cast<size_t>(g)] = request.retrieve.heads[static_cast<size_t>(head)].scale;
    for (int64_t i = 0; i < tile.queries(); ++i) {
      const int64_t token = plan.sequence->query_begin + tile.query_begin + i;
      ConvertToF32(request.query.dtype, request.query.Row(token, head),
                   queries.data() + static_cast<size_t>(i * group + g) * dim, dim);
    }
  }
  LocalProblem problem;
  problem.queries = queries.data();
  problem.query_count = tile.queries();
  problem.first_query = tile.query_begin;
  problem.group = group;
  problem.keys = request.local_keys;
  problem.values = request.local_values;
  problem.head = tile.kv_head;
  problem.row_begin = plan.sequence->local_begin;
  problem.row_count = plan.sequence->local_end - plan.sequence->local_begin;
  problem.mask = request.mask;
  problem.mask.offset = plan.sequence->mask_offset;
  if (problem.mask.bits != nullptr) problem.mask.bits += plan.sequence->query_begin * request.mask.bits_stride;
  problem.scales = scales.data();
  problem.soft_cap = layer.soft_cap;
  AttendLocal(problem, local.outputs, local.log_sum_exps);
}

// Reports what a (query, head) retrieved.
void Report(const AttendRequest& request, int64_t slot, absl::Span<const Scored> rows) {
  const int64_t stride = request.retrieved_stride;
  for (int64_t i = 0; i < stride; ++i) {
    const bool there = i < static_cast<int64_t>(rows.size());
    const int64_t at = slot * stride + i;
    if (request.retrieved_tokens != nullptr) {
      request.retrieved_tokens[at] = there ? rows[static_cast<size_t>(i)].index : -1;
    }
    if (request.retrieved_scores != nullptr) {
      request.retrieved_scores[at] =
          there ? rows[static_cast<size_t>(i)].score : -std::numeric_limits<float>::infinity();
    }
  }
}

// What a memory adds to a tile. All that it needs of `memory` it takes when it is made.
class TileFusion {
 public:
  TileFusion(SequencePlan& plan, const Tile& tile, std::pmr::memory_resource* memory)
      : plan_(plan),
        tile_(tile),
        retrieves_(plan.answer == nullptr && plan.view.has_value()),
        memory_output_(static_cast<size_t>(plan.request->retrieve.layer.value_dim), memory),
        found_(memory) {
    if (!retrieves_) return;
    const int64_t group = plan.request->retrieve.layer.group();
    const int64_t rows = plan.view->RowCount();
    found_.reserve(static_cast<size_t>(group));
    for (int64_t g = 0; g < group; ++g) {
      const HeadRule& rule = plan.request->retrieve.heads[static_cast<size_t>(tile.kv_head * group + g)];
      found_.emplace_back(static_cast<size_t>(std::min(rule.top_k, rows)), memory);
    }
  }

  // Finds the values of the first query's rows: they are on their way when this returns. The rows are known.
  void Gather() {
    for (size_t g = 0; g < found_.size(); ++g) Gather(tile_.query_begin, g);
  }

  // After Gather: softmax over what was retrieved, fusion with the local states, output.
  void Fuse(const LocalStates& local) {
    const int64_t group = plan_.request->retrieve.layer.group();
    for (int64_t query = tile_.query_begin; query < tile_.query_end; ++query) {
      for (int64_t g = 0; g < group; ++g) FuseOne(query, g, local);
    }
  }

 private:
  void Gather(int64_t query, size_t g) {
    const auto group = static_cast<size_t>(plan_.request->retrieve.layer.group());
    GatherValues(plan_, tile_.kv_head, query, tile_.kv_head * static_cast<int64_t>(group) + static_cast<int64_t>(g),
                 found_[g]);
  }

  void FuseOne(int64_t query, int64_t g, const LocalStates& local) {
    const AttendRequest& request = *plan_.request;
    const LayerCard& layer = request.retrieve.layer;
    const int64_t dim = layer.value_dim;
    const int64_t head = tile_.kv_head * layer.group() + g;
    const int64_t token = plan_.sequence->query_begin + query;
    const int64_t slot = token * layer.query_heads + head;
    const int64_t at = (query - tile_.query_begin) * layer.group() + g;
    float* const output = local.outputs + at * dim;
    float lse = local.log_sum_exps[at];
    float memory_lse = kEmptyLogSumExp;
    absl::Span<const Scored> rows;
    if (plan_.answer != nullptr) {
      const auto pair = static_cast<size_t>(query * layer.query_heads + head);
      const DeviceAnswer& answer = *plan_.answer;
      rows = absl::MakeConstSpan(answer.rows)
                 .subspan(pair * static_cast<size_t>(answer.top_k), static_cast<size_t>(answer.counts[pair]));
      std::copy_n(answer.outputs.data() + pair * static_cast<size_t>(dim), dim, memory_output_.data());
      memory_lse = answer.log_sum_exp[pair];
    } else if (retrieves_) {
      Found& found = found_[static_cast<size_t>(g)];
      rows = found.rows;
      memory_lse = AttendFound(plan_, found, memory_output_.data());
      // The next query's arrive while this one's other heads are summed.
      if (query + 1 < tile_.query_end) Gather(query + 1, static_cast<size_t>(g));
    } else {
      std::fill(memory_output_.begin(), memory_output_.end(), 0.0f);
    }
    float mass = MassOf(memory_lse, lse);
    switch (request.fusion) {
      case Fusion::kJoint:
      case Fusion::kMemoryOnly: MergeState(output, &lse, memory_output_.data(), memory_lse, dim); break;
      case Fusion::kGated: {
        const float gate = request.retrieve.heads[static_cast<size_t>(head)].gate;
        GateState(output, memory_output_.data(), gate, dim);
        mass = memory_lse == kEmptyLogSumExp ? 0.0f : Sigmoid(gate);
        // As if merged: what a host needs to go on merging.
        lse = memory_lse == kEmptyLogSumExp ? lse
              : lse == kEmptyLogSumExp      ? memory_lse
                                       : std::max(lse, memory_lse) + std::log1p(std::exp(-std::fabs(lse - memory_lse)));
        break;
      }
      case Fusion::kLocalOnly: break;
    }
    ConvertFromF32(output, request.output.dtype, request.output.Row(token, head), static_cast<size_t>(dim));
    if (request.log_sum_exp != nullptr) request.log_sum_exp[slot] = lse;
    if (request.memory_mass != nullptr) request.memory_mass[slot] = mass;
    if (request.retrieved_stride > 0) Report(request, slot, rows);
  }

  SequencePlan& plan_;
  const Tile tile_;
  const bool retrieves_;
  std::pmr::vector<float> memory_output_;
  std::pmr::vector<Found> found_;  // of a query's heads: those that are next
};

// All that is left for one tile when its rows are known.
void AttendTile(SequencePlan& plan, const Tile& tile) {
  const LayerCard& layer = plan.request->retrieve.layer;
  const auto states = static_cast<size_t>(tile.queries() * layer.group());
  Scratch scratch;
  std::pmr::vector<float> outputs(states * static_cast<size_t>(layer.value_dim), &scratch);
  std::pmr::vector<float> log_sum_exps(states, &scratch);
  const LocalStates local{outputs.data(), log_sum_exps.data()};
  TileFusion fusion(plan, tile, &scratch);
  fusion.Gather();
  AttendLocalTile(plan, tile, local);
  fusion.Fuse(local);
}

// The same for all heads of a few queries, while their rows are being searched: a head is fused by whoever comes last,
// the search for it or its local attention. What that needs lies in `memory`, for it may be any thread.
absl::Status RetrieveAndFuse(SequencePlan& plan, Executor& executor, std::pmr::memory_resource* memory) {
  const LayerCard& layer = plan.request->retrieve.layer;
  const int64_t queries = plan.sequence->query_end - plan.sequence->query_begin;
  const auto kv_heads = static_cast<size_t>(layer.kv_heads);
  const auto states = static_cast<size_t>(queries * layer.group());
  const auto floats = states * static_cast<size_t>(layer.value_dim);
  const bool has_local = HasLocal(plan);
  std::pmr::vector<float> outputs(kv_heads * floats, memory);
  std::pmr::vector<float> log_sum_exps(kv_heads * states, kEmptyLogSumExp, memory);
  std::pmr::vector<TileFusion> fusions(memory);
  fusions.reserve(kv_heads);
  for (int64_t head = 0; head < layer.kv_heads; ++head) fusions.emplace_back(plan, Tile{head, 0, queries}, memory);
  std::pmr::vector<std::atomic<int>> steps_left(kv_heads, memory);
  for (std::atomic<int>& left : steps_left) left = has_local ? 2 : 1;

  const auto local_of = [&](size_t kv_head) {
    return LocalStates{outputs.data() + kv_head * floats, log_sum_exps.data() + kv_head * states};
  };
  // One of a head's steps is done.
  const auto advance = [&](size_t kv_head, bool gathered) {
    if (--steps_left[kv_head] > 0) return;
    if (!gathered) fusions[kv_head].Gather();
    fusions[kv_head].Fuse(local_of(kv_head));
  };
  const auto attend_local = [&](size_t kv_head) {
    // Where the search has ended, values arrive meanwhile.
    const bool last = steps_left[kv_head] == 1;
    if (last) fusions[kv_head].Gather();
    AttendLocalTile(plan, {static_cast<int64_t>(kv_head), 0, queries}, local_of(kv_head));
    advance(kv_head, last);
  };
  const auto found = [&](int64_t kv_head) { advance(static_cast<size_t>(kv_head), false); };
  const Beside beside{has_local ? kv_heads : 0, attend_local, found};
  MNEME_RETURN_IF_ERROR(
      Retrieve(plan.request->retrieve, *plan.sequence, *plan.view, executor, absl::MakeSpan(plan.top), &beside));
  plan.fused = true;
  return absl::OkStatus();
}

// Whether heads may be fused while others are searched: few queries for few rows (more keep all threads busy in either
// phase, and take much room), and nothing that could still fail for want of rows.
bool MayFuseEarly(const SequencePlan& plan) {
  const MemoryView& view = *plan.view;
  const int64_t queries = plan.sequence->query_end - plan.sequence->query_begin;
  const int64_t rows = view.RowCount();
  int64_t wanted = 0;
  for (const HeadRule& head : plan.request->retrieve.heads) wanted += std::min(head.top_k, rows);
  return queries > 0 && queries <= kFewQueries && wanted > 0 && wanted <= kFewRows &&
         view.snapshot.state->runs.empty() &&
         std::all_of(view.rows.begin(), view.rows.end(),
                     [](const VisibleRows& piece) { return piece.keys != nullptr && piece.values != nullptr; });
}

bool HasDevice(const Sequence& sequence) {
  return sequence.memory != nullptr && sequence.memory->store().device() != nullptr;
}

// may_fuse: whether outputs may be written before all sequences have been read for.
absl::Status Prepare(SequencePlan& plan, bool may_fuse, Executor& executor, std::pmr::memory_resource* memory) {
  const AttendRequest& request = *plan.request;
  if (plan.sequence->memory == nullptr || request.fusion == Fusion::kLocalOnly) return absl::OkStatus();
  if (plan.answer != nullptr) return absl::OkStatus();
  MNEME_ASSIGN_OR_RETURN(MemoryView view, ViewMemory(request.retrieve, *plan.sequence, true, executor, memory));
  if (view.rows.empty()) return absl::OkStatus();
  plan.top = NothingFound(request.retrieve, *plan.sequence, view, memory);
  plan.view = std::move(view);
  if (may_fuse && MayFuseEarly(plan)) return RetrieveAndFuse(plan, executor, memory);
  const absl::Span<TopK> top = absl::MakeSpan(plan.top);
  MNEME_RETURN_IF_ERROR(Retrieve(request.retrieve, *plan.sequence, *plan.view, executor, top));
  MNEME_ASSIGN_OR_RETURN(plan.values, GatheredRows::Read(*plan.view, request.retrieve.layer, RowKind::kValues,
                                                         plan.sequence->memory->options().stored_dtype, top, executor));
  return absl::OkStatus();
}

void ZeroOutputs(const AttendRequest& request, const Sequence& sequence) {
  const LayerCard& layer = request.retrieve.layer;
  const size_t bytes = static_cast<size_t>(layer.value_dim) * DTypeSize(request.output.dtype);
  for (int64_t token = sequence.query_begin; token < sequence.query_end; ++token) {
    for (int64_t head = 0; head < layer.query_heads; ++head) {
      const int64_t slot = token * layer.query_heads + head;
      std::memset(request.output.Row(token, head), 0, bytes);
      if (request.log_sum_exp != nullptr) request.log_sum_exp[slot] = kEmptyLogSumExp;
      if (request.memory_mass != nullptr) request.memory_mass[slot] = 0;
      if (request.retrieved_stride > 0) Report(request, slot, {});
    }
  }
}

}  // namespace

absl::Status Attend(const AttendRequest& request, Executor& executor) {
  const absl::Span<const Sequence> sequences = request.retrieve.sequences;
  std::vector<DeviceAnswer> answers;
  if (std::any_of(sequences.begin(), sequences.end(), HasDevice)) answers = AttendOnDevice(request);
  Scratch scratch;
  std::pmr::vector<SequencePlan> plans(&scratch);
  plans.reserve(sequences.size());
  // Without statuses an error of one sequence is that of all, and leaves all outputs as they were.
  const bool may_fuse = sequences.size() == 1 || !request.statuses.empty();
  for (size_t i = 0; i < sequences.size(); ++i) {
    SequencePlan plan{&request,
                      &sequences[i],
                      !answers.empty() && answers[i].there ? &answers[i] : nullptr,
                      std::nullopt,
                      std::pmr::vector<TopK>(&scratch),
                      {},
                      false};
    const absl::Status status = Prepare(plan, may_fuse, executor, &scratch);
    if (!request.statuses.empty()) request.statuses[i] = status;
    if (status.ok()) {
      if (!plan.fused) plans.push_back(std::move(plan));
      continue;
    }
    // Without statuses all reading is done before anything is written: the outputs are untouched.
    if (request.statuses.empty()) return status;
    ZeroOutputs(request, *plan.sequence);
  }
  struct Item {
    SequencePlan* plan;
    Tile tile;
  };
  const int64_t kv_heads = request.retrieve.layer.kv_heads;
  std::pmr::vector<Item> items(&scratch);
  int64_t tiles = 0;
  for (const SequencePlan& plan : plans) {
    tiles += (plan.sequence->query_end - plan.sequence->query_begin + kQueriesPerItem - 1) / kQueriesPerItem;
  }
  items.reserve(static_cast<size_t>(kv_heads * tiles));
  for (SequencePlan& plan : plans) {
    const int64_t queries = plan.sequence->query_end - plan.sequence->query_begin;
    for (int64_t kv_head = 0; kv_head < kv_heads; ++kv_head) {
      for (int64_t query = 0; query < queries; query += kQueriesPerItem) {
        items.push_back({&plan, {kv_head, query, std::min(queries, query + kQueriesPerItem)}});
      }
    }
  }
  executor.ParallelFor(items.size(), [&](size_t i) { AttendTile(*items[i].plan, items[i].tile); });
  return absl::OkStatus();
}

absl::Status Search(const SearchRequest& request, Executor& executor) {
  const LayerCard& layer = request.retrieve.layer;
  const bool wants_values = request.values != nullptr;
  struct Found {
    std::optional<MemoryView> view;
    std::pmr::vector<TopK> top;
    GatheredRows keys, values;
  };
  // Everything is retrieved before anything is written.
  std::vector<Found> found(request.retrieve.sequences.size());
  for (size_t i = 0; i < found.size(); ++i) {
    const Sequence& sequence = request.retrieve.sequences[i];
    if (sequence.memory == nullptr) continue;
    Found& own = found[i];
    MNEME_ASSIGN_OR_RETURN(own.view, ViewMemory(request.retrieve, sequence, wants_values, executor));
    own.top = NothingFound(request.retrieve, sequence, *own.view);
    const absl::Span<TopK> top = absl::MakeSpan(own.top);
    MNEME_RETURN_IF_ERROR(Retrieve(request.retrieve, sequence, *own.view, executor, top));
    const DType dtype = sequence.memory->options().stored_dtype;
    if (request.keys != nullptr) {
      MNEME_ASSIGN_OR_RETURN(own.keys, GatheredRows::Read(*own.view, layer, RowKind::kKeys, dtype, top, executor));
    }
    if (wants_values) {
      MNEME_ASSIGN_OR_RETURN(own.values, GatheredRows::Read(*own.view, layer, RowKind::kValues, dtype, top, executor));
    }
  }
  for (size_t i = 0; i < found.size(); ++i) {
    const Sequence& sequence = request.retrieve.sequences[i];
    for (int64_t token = sequence.query_begin; token < sequence.query_end; ++token) {
      for (int64_t head = 0; head < layer.query_heads; ++head) {
        absl::Span<const Scored> rows;
        if (found[i].view.has_value()) {
          rows = found[i].top[static_cast<size_t>((token - sequence.query_begin) * layer.query_heads + head)].Sorted();
        }
        for (int64_t j = 0; j < request.top_k; ++j) {
          const int64_t at = (token * layer.query_heads + head) * request.top_k + j;
          const bool there = j < static_cast<int64_t>(rows.size());
          request.tokens[at] = there ? rows[static_cast<size_t>(j)].index : -1;
          if (request.scores != nullptr) {
            request.scores[at] = there ? rows[static_cast<size_t>(j)].score : -std::numeric_limits<float>::infinity();
          }
          float* key = request.keys == nullptr ? nullptr : request.keys + at * layer.key_dim;
          float* value = request.values == nullptr ? nullptr : request.values + at * layer.value_dim;
          if (!there) {
            if (key != nullptr) std::fill(key, key + layer.key_dim, 0.0f);
            if (value != nullptr) std::fill(value, value + layer.value_dim, 0.0f);
            continue;
          }
          const int64_t index = rows[static_cast<size_t>(j)].index;
          const int64_t kv_head = head / layer.group();
          const DType dtype = sequence.memory->options().stored_dtype;
          if (key != nullptr) DecodeRow(dtype, found[i].keys.Row(*found[i].view, kv_head, index), key, layer.key_dim);
          if (value != nullptr) {
            DecodeRow(dtype, found[i].values.Row(*found[i].view, kv_head, index), value, layer.value_dim);
          }
        }
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace mneme
