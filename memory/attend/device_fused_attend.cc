// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/device_fused_attend.h"

#include <algorithm>
#include <limits>
#include <memory_resource>
#include <optional>
#include <utility>
#include <vector>

#include "base/status.h"
#include "memory/attend/device_problem.h"
#include "memory/attend/device_support.h"
#include "memory/attend/memory_view.h"

namespace mneme {
namespace {

// What a sequence sees of its memory.
struct VisibleMemory {
  MemoryMirror* mirror = nullptr;  // null: no row is visible
  LayerView view{std::pmr::get_default_resource()};
  MemoryMirror::View rows;  // since Queue
};

class FusedLaunch final : public DeviceLaunch {
 public:
  FusedLaunch(const AttendRequest& request, Device& device)
      : request_(request),
        retrieve_(request.retrieve),
        device_(device),
        top_k_(GreatestTopK(request)),
        memories_(retrieve_.layer, request.query.dtype, &device),
        visible_(retrieve_.sequences.size()) {}

  // Returns: false if the device does not support a memory of the request.
  bool FindMemories() {
    for (size_t i = 0; i < visible_.size() && top_k_ > 0; ++i) {
      const Sequence& sequence = retrieve_.sequences[i];
      if (sequence.memory == nullptr) continue;
      visible_[i].view = MakeLayerView(retrieve_, sequence);
      if (sequence.memory_begin >= visible_[i].view.end || sequence.query_begin == sequence.query_end) continue;
      if (!memories_.Add(*sequence.memory, i).supported()) return false;
      visible_[i].mirror = sequence.memory->mirror();
      mirrors_.push_back(visible_[i].mirror);
    }
    return true;
  }
  // [sequences with visible rows]
  const std::vector<MemoryMirror*>& mirrors() const { return mirrors_; }

 protected:
  absl::StatusOr<bool> Queue(CallContext& context, void* stream) override;
  bool HasHostOutputs() const override {
    return request_.log_sum_exp != nullptr || request_.retrieved_stride > 0 || request_.memory_mass != nullptr;
  }
  void ReadOutputs() override;

 private:
  absl::StatusOr<bool> AcquireRows(void* stream, cuda::AttendBounds& bounds);
  void ReadRetrieved(size_t number);

  const AttendRequest& request_;
  const RetrieveRequest& retrieve_;
  Device& device_;
  const int64_t top_k_;
  LaunchMemories memories_;
  std::vector<VisibleMemory> visible_;  // [sequences]
  std::vector<MemoryMirror*> mirrors_;
  ArgumentBuffer buffer_;
  ArgumentBuffer::Array<float> log_sum_exps_, mass_, logits_;
  ArgumentBuffer::Array<int64_t> rows_;
};

absl::StatusOr<bool> FusedLaunch::AcquireRows(void* stream, cuda::AttendBounds& bounds) {
  for (size_t i = 0; i < visible_.size(); ++i) {
    const Sequence& sequence = retrieve_.sequences[i];
    VisibleMemory& visible = visible_[i];
    bounds.queries = std::max(bounds.queries, sequence.query_end - sequence.query_begin);
    bounds.local_rows = std::max(bounds.local_rows, sequence.local_end - sequence.local_begin);
    if (visible.mirror == nullptr) continue;
    MNEME_ASSIGN_OR_RETURN(const std::optional<MemoryMirror::View> rows,
                           visible.mirror->Acquire(visible.view.snapshot, visible.view.layer, sequence.memory_begin,
                                                   visible.view.end, stream));
    if (!rows.has_value()) return false;
    visible.rows = *rows;
    bounds.memory_rows = std::max(bounds.memory_rows, rows->rows.end - rows->rows.begin);
  }
  return true;
}

absl::StatusOr<bool> FusedLaunch::Queue(CallContext& context, void* stream) {
  cuda::AttendBounds bounds;
  MNEME_ASSIGN_OR_RETURN(const bool acquired, AcquireRows(stream, bounds));
  if (!acquired) return false;
  cuda::AttendProblem problem = MakeFusedProblem(request_, memories_.stored().value_or(request_.query.dtype));
  const int64_t slots = problem.tokens * problem.q_heads;
  const bool reports = request_.retrieved_stride > 0;
  const FusedArguments arguments(request_, problem, buffer_);
  if (request_.log_sum_exp != nullptr) log_sum_exps_ = buffer_.AddOutput<float>(slots);
  if (request_.memory_mass != nullptr) mass_ = buffer_.AddOutput<float>(slots);
  if (reports) {
    rows_ = buffer_.AddOutput<int64_t>(slots * top_k_);
    logits_ = buffer_.AddOutput<float>(slots * top_k_);
  }
  MNEME_RETURN_IF_ERROR(buffer_.Reserve(context));
  arguments.Fill(request_, buffer_, problem);
  for (size_t i = 0; i < visible_.size(); ++i) {
    arguments.SetSequence(retrieve_, retrieve_.sequences[i], i, visible_[i].view.end, visible_[i].rows, buffer_);
  }
  if (request_.log_sum_exp != nullptr) problem.log_sum_exp = buffer_.OnDevice(log_sum_exps_);
  if (request_.memory_mass != nullptr) problem.memory_share = buffer_.OnDevice(mass_);
  if (reports && top_k_ > 0) {
    problem.found = buffer_.OnDevice(rows_);
    problem.found_logits = buffer_.OnDevice(logits_);
  }
  MNEME_RETURN_IF_ERROR(buffer_.Launch(context, device_.runtime(), problem, bounds, stream));
  return true;
}

void FusedLaunch::ReadOutputs() {
  const int64_t slots = request_.query.rows * retrieve_.layer.query_heads;
  if (request_.log_sum_exp != nullptr) std::copy_n(buffer_.Host(log_sum_exps_), slots, request_.log_sum_exp);
  if (request_.memory_mass != nullptr) std::copy_n(buffer_.Host(mass_), slots, request_.memory_mass);
  if (request_.retrieved_stride == 0) return;
  for (size_t i = 0; i < visible_.size(); ++i) ReadRetrieved(i);
}

// Reports the retrieved rows of one sequence, which the device numbers as its mirror does.
void FusedLaunch::ReadRetrieved(size_t number) {
  const Sequence& sequence = retrieve_.sequences[number];
  const int64_t heads = retrieve_.layer.query_heads;
  const int64_t stride = request_.retrieved_stride;
  for (int64_t slot = sequence.query_begin * heads; slot < sequence.query_end * heads; ++slot) {
    for (int64_t k = 0; k < stride; ++k) {
      const int64_t row = k < top_k_ ? buffer_.Host(rows_)[slot * top_k_ + k] : -1;
      if (request_.retrieved_tokens != nullptr) {
        request_.retrieved_tokens[slot * stride + k] = row < 0 ? -1 : visible_[number].rows.TokenOf(row);
      }
      if (request_.retrieved_scores != nullptr) {
        request_.retrieved_scores[slot * stride + k] =
            row < 0 ? -std::numeric_limits<float>::infinity() : buffer_.Host(logits_)[slot * top_k_ + k];
      }
    }
  }
}

}  // namespace

absl::StatusOr<bool> DeviceFusedAttend(const AttendRequest& request, Device& device, const StreamChoice& choice) {
  FusedLaunch launch(request, device);
  if (!launch.FindMemories()) return false;
  MNEME_ASSIGN_OR_RETURN(const bool done, launch.Run(device, launch.mirrors(), choice));
  if (done) device.counters().attended += static_cast<int64_t>(launch.mirrors().size());
  return done;
}

}  // namespace mneme
