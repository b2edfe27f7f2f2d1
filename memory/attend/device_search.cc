// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/device_search.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/status.h"
#include "memory/attend/device_launch.h"
#include "memory/attend/device_problem.h"
#include "memory/attend/device_support.h"
#include "memory/attend/memory_view.h"
#include "memory/store_context.h"

namespace mneme {
namespace {

// A sequence that the device serves.
struct ServedSequence {
  size_t number;  // in the request
  const Sequence* sequence;
  MemoryMirror* mirror;
  LayerView view;
};

// Some queries of a served sequence, searched by one launch.
struct QueryPart {
  const ServedSequence* served;
  QueryRange queries;
  MemoryMirror::View rows;  // since Queue
};

int64_t QueriesOf(const Sequence& sequence) {
  return sequence.query_end - sequence.query_begin;
}

// Searches for up to kMostRetrievedRows / (heads * top_k) queries.
class SearchLaunch final : public DeviceLaunch {
 public:
  // results: of all sequences. Queue removes those whose rows cannot be had, ReadOutputs fills in the others.
  SearchLaunch(const RetrieveRequest& request, int64_t top_k, DType stored, std::vector<QueryPart> parts,
               std::vector<std::optional<RetrievedStates>>& results)
      : request_(request), top_k_(top_k), stored_(stored), parts_(std::move(parts)), results_(results) {}

 protected:
  absl::StatusOr<bool> Queue(CallContext& context, void* stream) override;
  bool HasHostOutputs() const override { return true; }
  void ReadOutputs() override;

 private:
  // Removes the parts whose rows cannot be had, and their results.
  absl::Status AcquireRows(void* stream);
  void CopyQueries(char* to) const;

  const RetrieveRequest& request_;
  const int64_t top_k_;
  const DType stored_;
  std::vector<QueryPart> parts_;
  std::vector<std::optional<RetrievedStates>>& results_;
  ArgumentBuffer buffer_;
  ArgumentBuffer::Array<float> outputs_, log_sum_exps_, logits_;
  ArgumentBuffer::Array<int64_t> rows_;
};

absl::Status SearchLaunch::AcquireRows(void* stream) {
  std::vector<QueryPart> acquired;
  for (QueryPart& part : parts_) {
    const ServedSequence& served = *part.served;
    std::optional<RetrievedStates>& result = results_[served.number];
    if (!result.has_value()) continue;
    MNEME_ASSIGN_OR_RETURN(const std::optional<MemoryMirror::View> rows,
                           served.mirror->Acquire(served.view.snapshot, served.view.layer,
                                                  served.sequence->memory_begin, served.view.end, stream));
    if (!rows.has_value()) {
      result.reset();
      continue;
    }
    part.rows = *rows;
    acquired.push_back(part);
  }
  parts_ = std::move(acquired);
  return absl::OkStatus();
}

absl::StatusOr<bool> SearchLaunch::Queue(CallContext& context, void* stream) {
  MNEME_RETURN_IF_ERROR(AcquireRows(stream));
  if (parts_.empty()) return false;
  cuda::AttendBounds bounds;
  int64_t tokens = 0;
  for (const QueryPart& part : parts_) {
    const int64_t queries = part.queries.end - part.queries.begin;
    tokens += queries;
    bounds.queries = std::max(bounds.queries, queries);
    bounds.memory_rows = std::max(bounds.memory_rows, part.rows.rows.end - part.rows.rows.begin);
  }
  cuda::AttendProblem problem =
      MakeProblem(request_, tokens, parts_.size(), top_k_, request_.memory_query.dtype, stored_);
  problem.output_type = DType::kF32;
  const int64_t slots = problem.tokens * problem.q_heads;
  const auto queries = buffer_.AddInput<char>(slots * problem.key_dim * static_cast<int64_t>(sizeof(uint16_t)));
  const SearchArguments arguments(request_, problem, buffer_);
  outputs_ = buffer_.AddOutput<float>(slots * problem.value_dim);
  log_sum_exps_ = buffer_.AddOutput<float>(slots);
  rows_ = buffer_.AddOutput<int64_t>(slots * top_k_);
  logits_ = buffer_.AddOutput<float>(slots * top_k_);
  MNEME_RETURN_IF_ERROR(buffer_.Reserve(context));

  CopyQueries(buffer_.Host(queries));
  arguments.Fill(request_, buffer_, problem);
  int64_t launch_begin = 0;
  for (size_t i = 0; i < parts_.size(); ++i) {
    const QueryPart& part = parts_[i];
    arguments.SetSequence(request_, *part.served->sequence, i, part.queries, launch_begin, part.served->view.end,
                          part.rows, buffer_);
    launch_begin += part.queries.end - part.queries.begin;
  }
  problem.query = buffer_.OnDevice(queries);
  problem.output = buffer_.OnDevice(outputs_);
  problem.log_sum_exp = buffer_.OnDevice(log_sum_exps_);
  problem.found = buffer_.OnDevice(rows_);
  problem.found_logits = buffer_.OnDevice(logits_);
  Device& device = *parts_.front().served->sequence->memory->context().device();
  MNEME_RETURN_IF_ERROR(buffer_.Launch(context, device.runtime(), problem, bounds, stream));
  return true;
}

void SearchLaunch::CopyQueries(char* to) const {
  const auto row_bytes = static_cast<size_t>(request_.layer.key_dim) * sizeof(uint16_t);  // f16 or bf16
  for (const QueryPart& part : parts_) {
    for (int64_t token = part.queries.begin; token < part.queries.end; ++token) {
      for (int64_t head = 0; head < request_.layer.query_heads; ++head, to += row_bytes) {
        std::memcpy(to, request_.memory_query.Row(token, head), row_bytes);
      }
    }
  }
}

void SearchLaunch::ReadOutputs() {
  const auto dim = static_cast<int64_t>(request_.layer.value_dim);
  const int64_t heads = request_.layer.query_heads;
  int64_t from = 0;  // slot of the launch
  for (const QueryPart& part : parts_) {
    RetrievedStates& result = *results_[part.served->number];
    const int64_t slots = (part.queries.end - part.queries.begin) * heads;
    const int64_t to = (part.queries.begin - part.served->sequence->query_begin) * heads;
    std::copy_n(buffer_.Host(outputs_) + from * dim, slots * dim, result.outputs.data() + to * dim);
    std::copy_n(buffer_.Host(log_sum_exps_) + from, slots, result.log_sum_exp.data() + to);
    for (int64_t slot = 0; slot < slots; ++slot) {
      int32_t& count = result.counts[static_cast<size_t>(to + slot)];
      count = 0;
      for (int64_t k = 0; k < top_k_; ++k) {
        const int64_t row = buffer_.Host(rows_)[(from + slot) * top_k_ + k];
        if (row < 0) break;
        result.rows[static_cast<size_t>((to + slot) * top_k_ + k)] = {buffer_.Host(logits_)[(from + slot) * top_k_ + k],
                                                                      part.rows.TokenOf(row)};
        ++count;
      }
    }
    from += slots;
  }
}

// Finds the sequences that the device serves, and searches for them launch by launch.
class DeviceSearch {
 public:
  explicit DeviceSearch(const AttendRequest& request)
      : request_(request),
        retrieve_(request.retrieve),
        top_k_(GreatestTopK(request)),
        memories_(retrieve_.layer, retrieve_.memory_query.dtype),
        results_(retrieve_.sequences.size()) {}

  std::vector<std::optional<RetrievedStates>> Run() {
    if (top_k_ == 0) return std::move(results_);
    FindServed();
    for (std::vector<QueryPart>& parts : DivideIntoLaunches()) Search(std::move(parts));
    for (const ServedSequence& served : served_) {
      DeviceCounters& counters = memories_.device()->counters();
      ++(results_[served.number].has_value() ? counters.attended : counters.fell_back);
    }
    return std::move(results_);
  }

 private:
  void FindServed() {
    const bool supported = CheckDeviceSupport(request_, DevicePart::kSearch).supported();
    for (size_t i = 0; i < retrieve_.sequences.size(); ++i) {
      const Sequence& sequence = retrieve_.sequences[i];
      if (sequence.memory == nullptr || QueriesOf(sequence) == 0 || HasFailed(request_, i)) continue;
      Device* const device = sequence.memory->context().device().get();
      if (device == nullptr) continue;
      LayerView view = MakeLayerView(retrieve_, sequence);
      if (sequence.memory_begin >= view.end) continue;
      if (!supported || !memories_.Add(*sequence.memory, i).supported()) {
        ++device->counters().fell_back;
        continue;
      }
      served_.push_back({i, &sequence, sequence.memory->mirror(), std::move(view)});
      const auto slots = static_cast<size_t>(QueriesOf(sequence) * retrieve_.layer.query_heads);
      RetrievedStates& result = results_[i].emplace();
      result.top_k = top_k_;
      result.outputs.resize(slots * static_cast<size_t>(retrieve_.layer.value_dim));
      result.log_sum_exp.resize(slots);
      result.rows.resize(slots * static_cast<size_t>(top_k_));
      result.counts.resize(slots);
    }
  }

  std::vector<std::vector<QueryPart>> DivideIntoLaunches() const {
    const int64_t most_queries = std::max<int64_t>(1, kMostRetrievedRows / (retrieve_.layer.query_heads * top_k_));
    std::vector<std::vector<QueryPart>> launches;
    int64_t room = 0;
    for (const ServedSequence& served : served_) {
      for (int64_t query = served.sequence->query_begin; query < served.sequence->query_end;) {
        if (room == 0 || launches.back().size() == kMostSequences) {
          launches.emplace_back();
          room = most_queries;
        }
        const int64_t n = std::min(room, served.sequence->query_end - query);
        launches.back().push_back({&served, {query, query + n}, {}});
        query += n;
        room -= n;
      }
    }
    return launches;
  }

  void Search(std::vector<QueryPart> parts) {
    // An earlier launch may have left the rest of a sequence to the CPU.
    const auto has_result = [&](const QueryPart& part) { return results_[part.served->number].has_value(); };
    if (std::none_of(parts.begin(), parts.end(), has_result)) return;
    std::vector<MemoryMirror*> mirrors;
    mirrors.reserve(parts.size());
    for (const QueryPart& part : parts) mirrors.push_back(part.served->mirror);
    SearchLaunch launch(retrieve_, top_k_, *memories_.stored(), parts, results_);
    const absl::StatusOr<bool> done = launch.Run(*memories_.device(), mirrors, {});
    if (!done.ok()) memories_.device()->LogFailure(done.status());
    if (done.ok() && *done) return;
    for (const QueryPart& part : parts) results_[part.served->number].reset();
  }

  const AttendRequest& request_;
  const RetrieveRequest& retrieve_;
  const int64_t top_k_;
  LaunchMemories memories_;
  std::vector<ServedSequence> served_;
  std::vector<std::optional<RetrievedStates>> results_;  // [sequences]
};

}  // namespace

std::vector<std::optional<RetrievedStates>> SearchOnDevice(const AttendRequest& request) {
  return DeviceSearch(request).Run();
}

}  // namespace mneme
