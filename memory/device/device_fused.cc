// SPDX-License-Identifier: Apache-2.0
#include "memory/device/device_fused.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/status.h"
#include "memory/attend/memory_view.h"
#include "memory/device/device_tray.h"
#include "memory/device/fused_problem.h"
#include "memory/store.h"

namespace mneme {
namespace {

class FusedAttend {
 public:
  FusedAttend(const AttendRequest& request, Device& device)
      : request_(request), retrieve_(request.retrieve), device_(device) {}

  absl::StatusOr<bool> Run(bool has_stream, void* stream) {
    if (!UnknownToKernels(request_).empty()) return false;
    top_k_ = GreatestTopK(request_);
    FindSequences();
    if (!device_memories_) return false;
    MNEME_ASSIGN_OR_RETURN(std::unique_ptr<DeviceDesk> desk, device_.Borrow());
    if (!has_stream) stream = desk->stream();
    absl::Status status;
    {
      MirrorLocks locks;
      for (const Seen& seen : seen_) {
        if (seen.mirror != nullptr) locks.Add(seen.mirror);
      }
      locks.Take();
      status = Queue(*desk, stream);
      if (!status.ok() && !absl::IsResourceExhausted(status)) locks.ForgetBehind(*desk, device_, stream);
    }
    if (status.ok() && there_) {
      const bool waits = !has_stream || HasHostOutputs();
      if (waits) status = DeviceStatus(device_.runtime().Synchronise(desk->event()));
      if (status.ok()) {
        if (waits) TakeOutputs();
        device_.counters().attended += visible_;
        device_.Return(std::move(desk), /*busy=*/!waits);
        return true;
      }
    }
    // No room, for rows or for the call: others may have.
    if (status.ok() || absl::IsResourceExhausted(status)) {
      device_.Return(std::move(desk), /*busy=*/false);
      return false;
    }
    return status;
  }

 private:
  // What a sequence sees of its memory; mirror null: nothing.
  struct Seen {
    MemoryMirror* mirror = nullptr;
    LayerView memory{std::pmr::get_default_resource()};
    MemoryMirror::View view;
  };

  bool HasHostOutputs() const {
    return request_.log_sum_exp != nullptr || request_.retrieved_stride > 0 || request_.memory_mass != nullptr;
  }

  void FindSequences() {
    seen_.resize(retrieve_.sequences.size());
    std::optional<DType> stored;
    for (size_t i = 0; i < seen_.size() && top_k_ > 0; ++i) {
      const Sequence& sequence = retrieve_.sequences[i];
      if (sequence.memory == nullptr) continue;
      Seen& seen = seen_[i];
      seen.memory = MakeLayerView(retrieve_, sequence);
      if (sequence.memory_begin >= seen.memory.end || sequence.query_begin == sequence.query_end) continue;
      seen.mirror = sequence.memory->mirror();
      const DType own = sequence.memory->options().stored_dtype;
      const bool typed = own == DType::kI8 || own == request_.query.dtype;
      // One call, one device and one type of rows.
      if (seen.mirror == nullptr || !typed || sequence.memory->store().device().get() != &device_ ||
          stored.value_or(own) != own) {
        device_memories_ = false;
        return;
      }
      stored = own;
      ++visible_;
    }
    stored_ = stored.value_or(request_.query.dtype);
  }

  absl::Status Queue(DeviceDesk& desk, void* stream) {
    const size_t batch = seen_.size();
    cuda::AttendBounds bounds;
    for (size_t i = 0; i < batch; ++i) {
      const Sequence& sequence = retrieve_.sequences[i];
      Seen& seen = seen_[i];
      bounds.queries = std::max(bounds.queries, sequence.query_end - sequence.query_begin);
      bounds.local_rows = std::max(bounds.local_rows, sequence.local_end - sequence.local_begin);
      if (seen.mirror == nullptr) continue;
      MNEME_ASSIGN_OR_RETURN(const std::optional<MemoryMirror::View> view,
                             seen.mirror->Acquire(seen.memory.snapshot, seen.memory.layer, sequence.memory_begin,
                                                  seen.memory.end, stream));
      if (!view.has_value()) return absl::OkStatus();
      seen.view = *view;
      bounds.memory_rows = std::max(bounds.memory_rows, view->rows.end - view->rows.begin);
    }
    cuda::AttendProblem p = FusedProblemOf(request_, stored_);
    const int64_t pairs = p.tokens * p.q_heads;
    const FusedInputs inputs(request_, p, tray_);
    if (request_.log_sum_exp != nullptr) sums_ = tray_.Output<float>(pairs);
    if (request_.memory_mass != nullptr) mass_ = tray_.Output<float>(pairs);
    if (request_.retrieved_stride > 0) {
      found_ = tray_.Output<int64_t>(pairs * top_k_);
      logits_ = tray_.Output<float>(pairs * top_k_);
    }
    MNEME_RETURN_IF_ERROR(tray_.Lay(desk));
    inputs.Fill(request_, tray_, p);
    for (size_t i = 0; i < batch; ++i) {
      inputs.See(retrieve_, retrieve_.sequences[i], i, seen_[i].memory.end, seen_[i].view, tray_);
    }
    if (request_.log_sum_exp != nullptr) p.log_sum_exp = tray_.OnDevice(sums_);
    if (request_.memory_mass != nullptr) p.memory_share = tray_.OnDevice(mass_);
    if (request_.retrieved_stride > 0 && top_k_ > 0) {
      p.found = tray_.OnDevice(found_);
      p.found_logits = tray_.OnDevice(logits_);
    }
    MNEME_RETURN_IF_ERROR(tray_.Queue(desk, device_, p, bounds, stream));
    for (const Seen& seen : seen_) {
      if (seen.mirror != nullptr) MNEME_RETURN_IF_ERROR(seen.mirror->Release(desk.event()));
    }
    there_ = true;
    return absl::OkStatus();
  }

  void TakeOutputs() {
    const int64_t pairs = request_.query.rows * retrieve_.layer.query_heads;
    if (request_.log_sum_exp != nullptr) std::copy_n(tray_.Host(sums_), pairs, request_.log_sum_exp);
    if (request_.memory_mass != nullptr) std::copy_n(tray_.Host(mass_), pairs, request_.memory_mass);
    const int64_t stride = request_.retrieved_stride;
    for (size_t i = 0; i < seen_.size() && stride > 0; ++i) {
      const Sequence& sequence = retrieve_.sequences[i];
      const int64_t heads = retrieve_.layer.query_heads;
      for (int64_t pair = sequence.query_begin * heads; pair < sequence.query_end * heads; ++pair) {
        for (int64_t k = 0; k < stride; ++k) {
          const int64_t row = k < top_k_ ? tray_.Host(found_)[pair * top_k_ + k] : -1;
          if (request_.retrieved_tokens != nullptr) {
            request_.retrieved_tokens[pair * stride + k] = row < 0 ? -1 : seen_[i].view.TokenOf(row);
          }
          if (request_.retrieved_scores != nullptr) {
            request_.retrieved_scores[pair * stride + k] =
                row < 0 ? -std::numeric_limits<float>::infinity() : tray_.Host(logits_)[pair * top_k_ + k];
          }
        }
      }
    }
  }

  const AttendRequest& request_;
  const RetrieveRequest& retrieve_;
  Device& device_;
  int64_t top_k_ = 0;
  std::vector<Seen> seen_;  // [sequences]
  DType stored_ = DType::kF16;
  bool device_memories_ = true;
  bool there_ = false;
  int64_t visible_ = 0;
  DeviceTray tray_;
  DeviceTray::Place<float> sums_, mass_, logits_;
  DeviceTray::Place<int64_t> found_;
};

}  // namespace

absl::StatusOr<bool> AttendWholly(const AttendRequest& request, Device& device, bool has_stream, void* stream) {
  return FusedAttend(request, device).Run(has_stream, stream);
}

}  // namespace mneme
