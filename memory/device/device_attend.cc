// SPDX-License-Identifier: Apache-2.0
#include "memory/device/device_attend.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <utility>

#include "base/status.h"
#include "memory/attend/memory_view.h"
#include "memory/device/device_tray.h"
#include "memory/store.h"

namespace mneme {
namespace {

// A sequence that the device shall serve.
struct Served {
  size_t number = 0;
  const Sequence* sequence = nullptr;
  MemoryMirror* mirror = nullptr;
  LayerView memory{std::pmr::get_default_resource()};
};

// Queries [begin, end) of one served sequence (numbers within the batch), in one call.
struct Piece {
  size_t served = 0;
  int64_t begin = 0;
  int64_t end = 0;
};

class DeviceSearch {
 public:
  explicit DeviceSearch(const AttendRequest& request)
      : request_(request), retrieve_(request.retrieve), answers_(request.retrieve.sequences.size()) {}

  std::vector<std::optional<RetrievedStates>> Run() {
    FindServed();
    for (const std::vector<Piece>& call : Calls()) {
      if (!Lost(call)) RunCall(call);
    }
    for (const Served& served : served_) {
      ++(answers_[served.number].has_value() ? device_->counters().attended : device_->counters().fell_back);
    }
    return std::move(answers_);
  }

 private:
  int64_t heads() const { return retrieve_.layer.query_heads; }

  // Whether the request is one that the kernels know.
  bool KnowsRequest() const {
    const DType type = retrieve_.memory_query.dtype;
    return request_.fusion != Fusion::kLocalOnly && retrieve_.policy == PositionPolicy::kAsStored &&
           !retrieve_.normalise_query && (type == DType::kF16 || type == DType::kBF16) && top_k_ <= cuda::kMaxTopK;
  }

  void FindServed() {
    for (const HeadRule& head : retrieve_.heads) top_k_ = std::max(top_k_, head.top_k);
    if (top_k_ == 0 || request_.fusion == Fusion::kLocalOnly) return;
    const bool knows = KnowsRequest();
    for (size_t i = 0; i < retrieve_.sequences.size(); ++i) {
      const Sequence& sequence = retrieve_.sequences[i];
      if (sequence.memory == nullptr || sequence.query_begin == sequence.query_end) continue;
      Device* const device = sequence.memory->store().device().get();
      if (device == nullptr) continue;
      Served served;
      served.number = i;
      served.sequence = &sequence;
      served.mirror = sequence.memory->mirror();
      served.memory = MakeLayerView(retrieve_, sequence);
      if (sequence.memory_begin >= served.memory.end) continue;  // nothing to see
      const DType stored = sequence.memory->options().stored_dtype;
      const bool typed = stored == DType::kI8 || stored == retrieve_.memory_query.dtype;
      // One call, one device and one type of rows.
      if (!knows || !typed || served.mirror == nullptr || (device_ != nullptr && device != device_) ||
          (device_ != nullptr && stored != stored_)) {
        ++device->counters().fell_back;
        continue;
      }
      device_ = device;
      stored_ = stored;
      served_.push_back(std::move(served));
      RetrievedStates& answer = answers_[i].emplace();  // until something is in the way
      const auto pairs = static_cast<size_t>((sequence.query_end - sequence.query_begin) * heads());
      answer.top_k = top_k_;
      answer.outputs.resize(pairs * static_cast<size_t>(retrieve_.layer.value_dim));
      answer.log_sum_exp.resize(pairs);
      answer.rows.resize(pairs * static_cast<size_t>(top_k_));
      answer.counts.resize(pairs);
    }
  }

  std::vector<std::vector<Piece>> Calls() const {
    if (served_.empty()) return {};
    const int64_t most = std::max<int64_t>(1, kMostCandidates / (heads() * top_k_));
    std::vector<std::vector<Piece>> calls;
    int64_t room = 0;
    for (size_t i = 0; i < served_.size(); ++i) {
      for (int64_t query = served_[i].sequence->query_begin; query < served_[i].sequence->query_end;) {
        if (room == 0 || calls.back().size() == 65535) {
          calls.emplace_back();
          room = most;
        }
        const int64_t n = std::min(room, served_[i].sequence->query_end - query);
        calls.back().push_back({i, query, query + n});
        query += n;
        room -= n;
      }
    }
    return calls;
  }

  bool Lost(const std::vector<Piece>& call) const {
    return std::none_of(call.begin(), call.end(),
                        [&](const Piece& piece) { return answers_[served_[piece.served].number].has_value(); });
  }

  void RunCall(const std::vector<Piece>& all) {
    absl::StatusOr<std::unique_ptr<DeviceDesk>> desk = device_->Borrow();
    absl::Status status = desk.status();
    std::vector<Piece> call;
    if (status.ok()) {
      MirrorLocks locks;
      for (const Piece& piece : all) locks.Add(served_[piece.served].mirror);
      locks.Take();
      status = QueueCall(all, **desk, &call);
      if (!status.ok() && !absl::IsResourceExhausted(status)) locks.ForgetBehind(**desk, *device_, (*desk)->stream());
    }
    if (status.ok() && !call.empty()) {
      status = DeviceStatus(device_->runtime().Synchronise((*desk)->event()));
      if (status.ok()) TakeAnswers(call);
    }
    if (!status.ok()) {
      for (const Piece& piece : all) answers_[served_[piece.served].number].reset();
    }
    // No room is no failure: nothing was queued then.
    if (status.ok() || (desk.ok() && absl::IsResourceExhausted(status))) {
      device_->Return(*std::move(desk), /*busy=*/false);
    } else {
      device_->Failed(status);
    }
  }

  // Queues the whole call. Pieces whose rows cannot be had are left out of `call`, and their answers are not there.
  absl::Status QueueCall(const std::vector<Piece>& all, DeviceDesk& desk, std::vector<Piece>* call) {
    std::vector<MemoryMirror::View> views;
    for (const Piece& piece : all) {
      const Served& served = served_[piece.served];
      std::optional<RetrievedStates>& answer = answers_[served.number];
      if (!answer.has_value()) continue;
      MNEME_ASSIGN_OR_RETURN(const std::optional<MemoryMirror::View> view,
                             served.mirror->Acquire(served.memory.snapshot, served.memory.layer,
                                                    served.sequence->memory_begin, served.memory.end, desk.stream()));
      if (!view.has_value()) {
        answer.reset();
        continue;
      }
      call->push_back(piece);
      views.push_back(*view);
    }
    if (call->empty()) return absl::OkStatus();

    cuda::AttendBounds bounds;
    std::vector<int64_t> offsets = {0};
    for (size_t i = 0; i < call->size(); ++i) {
      const int64_t queries = (*call)[i].end - (*call)[i].begin;
      offsets.push_back(offsets.back() + queries);
      bounds.queries = std::max(bounds.queries, queries);
      bounds.memory_rows = std::max(bounds.memory_rows, views[i].rows.end - views[i].rows.begin);
    }
    cuda::AttendProblem p =
        ProblemOf(retrieve_, offsets.back(), call->size(), top_k_, retrieve_.memory_query.dtype, stored_);
    p.output_type = cuda::ElementType::kF32;

    const int64_t pairs = p.tokens * p.q_heads;
    const int64_t row_bytes = 2 * p.key_dim;
    DeviceTray tray;
    const auto query = tray.Input<char>(pairs * row_bytes);
    const auto rows = tray.Input<cuda::MemoryRows>(p.batch);
    const auto memories = tray.Input<const cuda::MemoryRows*>(p.batch);
    const auto query_offsets = tray.Input<int64_t>(p.batch + 1);
    const RankingTray ranking(retrieve_, p, tray);
    output_ = tray.Output<float>(pairs * p.value_dim);
    sums_ = tray.Output<float>(pairs);
    found_ = tray.Output<int64_t>(pairs * top_k_);
    logits_ = tray.Output<float>(pairs * top_k_);
    MNEME_RETURN_IF_ERROR(tray.Lay(desk));

    char* to = tray.Host(query);
    for (const Piece& piece : *call) {
      for (int64_t token = piece.begin; token < piece.end; ++token) {
        for (int64_t head = 0; head < heads(); ++head, to += row_bytes) {
          std::memcpy(to, retrieve_.memory_query.Row(token, head), static_cast<size_t>(row_bytes));
        }
      }
    }
    for (size_t i = 0; i < call->size(); ++i) {
      tray.Host(rows)[i] = views[i].rows;
      tray.Host(memories)[i] = tray.OnDevice(rows) + i;
    }
    std::copy(offsets.begin(), offsets.end(), tray.Host(query_offsets));
    ranking.Fill(retrieve_, tray, p);
    if (p.decay != nullptr) {
      int64_t* position = ranking.Positions(tray);
      for (size_t i = 0; i < call->size(); ++i) {
        const Served& served = served_[(*call)[i].served];
        for (int64_t token = (*call)[i].begin; token < (*call)[i].end; ++token) {
          *position++ = QueryPosition(retrieve_, *served.sequence, served.memory.end, token) - views[i].gap;
        }
      }
    }
    p.query = tray.OnDevice(query);
    p.query_offsets = tray.OnDevice(query_offsets);
    p.memories = tray.OnDevice(memories);
    p.output = tray.OnDevice(output_);
    p.log_sum_exp = tray.OnDevice(sums_);
    p.found = tray.OnDevice(found_);
    p.found_logits = tray.OnDevice(logits_);
    MNEME_RETURN_IF_ERROR(tray.Queue(desk, *device_, p, bounds, desk.stream()));
    for (const Piece& piece : *call) {
      MNEME_RETURN_IF_ERROR(served_[piece.served].mirror->Release(desk.event()));
    }
    views_ = std::move(views);
    tray_ = tray;
    return absl::OkStatus();
  }

  void TakeAnswers(const std::vector<Piece>& call) {
    const auto dim = static_cast<int64_t>(retrieve_.layer.value_dim);
    int64_t from = 0;  // row of [tokens, q_heads] of the call
    for (size_t i = 0; i < call.size(); ++i) {
      const Sequence& sequence = *served_[call[i].served].sequence;
      RetrievedStates& answer = *answers_[served_[call[i].served].number];
      const int64_t pairs = (call[i].end - call[i].begin) * heads();
      const int64_t to = (call[i].begin - sequence.query_begin) * heads();
      std::copy_n(tray_.Host(output_) + from * dim, pairs * dim, answer.outputs.data() + to * dim);
      std::copy_n(tray_.Host(sums_) + from, pairs, answer.log_sum_exp.data() + to);
      for (int64_t pair = 0; pair < pairs; ++pair) {
        int32_t& count = answer.counts[static_cast<size_t>(to + pair)];
        count = 0;
        for (int64_t k = 0; k < top_k_; ++k) {
          const int64_t row = tray_.Host(found_)[(from + pair) * top_k_ + k];
          if (row < 0) break;
          answer.rows[static_cast<size_t>((to + pair) * top_k_ + k)] = {tray_.Host(logits_)[(from + pair) * top_k_ + k],
                                                                        views_[i].TokenOf(row)};
          ++count;
        }
      }
      from += pairs;
    }
  }

  const AttendRequest& request_;
  const RetrieveRequest& retrieve_;
  Device* device_ = nullptr;
  DType stored_ = DType::kF16;
  int64_t top_k_ = 0;
  std::vector<Served> served_;
  std::vector<std::optional<RetrievedStates>> answers_;
  // Of the call under way.
  std::vector<MemoryMirror::View> views_;
  DeviceTray tray_;
  DeviceTray::Place<float> output_, sums_, logits_;
  DeviceTray::Place<int64_t> found_;
};

}  // namespace

std::vector<std::optional<RetrievedStates>> AttendOnDevice(const AttendRequest& request) {
  return DeviceSearch(request).Run();
}

}  // namespace mneme
