// SPDX-License-Identifier: Apache-2.0
#include "memory/device/device_tray.h"

#include "base/status.h"

namespace mneme {

absl::Status DeviceTray::Lay(DeviceDesk& desk) {
  MNEME_RETURN_IF_ERROR(desk.Reserve(output_end_));
  host_ = desk.host_data();
  device_ = desk.device_data();
  return absl::OkStatus();
}

absl::Status DeviceTray::Queue(DeviceDesk& desk, Device& device, const cuda::AttendProblem& problem,
                               const cuda::AttendBounds& bounds, void* stream) {
  cuda::Runtime& runtime = device.runtime();
  cuda::AttendPlan plan;
  MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.Prepare(problem, bounds, &plan)));
  MNEME_RETURN_IF_ERROR(desk.ReserveWorkspace(plan.workspace_bytes));
  // The desk's memory belongs to its own stream.
  if (stream != desk.stream()) {
    MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.Record(desk.event(), desk.stream())));
    MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.Wait(stream, desk.event())));
  }
  MNEME_RETURN_IF_ERROR(
      DeviceStatus(runtime.Copy({host_, input_bytes_, device_, input_bytes_, input_bytes_, 1}, stream)));
  MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.Attend(problem, plan, desk.workspace(), stream)));
  const int64_t output_bytes = output_end_ - input_bytes_;
  if (output_bytes > 0) {
    MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.Copy(
        {device_ + input_bytes_, output_bytes, host_ + input_bytes_, output_bytes, output_bytes, 1}, stream)));
  }
  MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.Record(desk.event(), stream)));
  if (stream == desk.stream()) return absl::OkStatus();
  return DeviceStatus(runtime.Wait(desk.stream(), desk.event()));
}

cuda::AttendProblem ProblemOf(const RetrieveRequest& request, int64_t tokens, size_t batch, int64_t top_k,
                              DType query_type, DType stored) {
  const LayerCard& layer = request.layer;
  cuda::AttendProblem p;
  p.tokens = tokens;
  p.batch = static_cast<int32_t>(batch);
  p.q_heads = layer.query_heads;
  p.kv_heads = layer.kv_heads;
  p.key_dim = layer.key_dim;
  p.value_dim = layer.value_dim;
  p.top_k = static_cast<int32_t>(top_k);
  p.type = static_cast<cuda::ElementType>(query_type);
  p.memory_type = static_cast<cuda::ElementType>(stored);
  p.soft_cap = layer.soft_cap;
  p.decay_beyond = request.decay_beyond;
  return p;
}

RankingTray::RankingTray(const RetrieveRequest& request, const cuda::AttendProblem& problem, DeviceTray& tray)
    : scale_(tray.Input<float>(problem.q_heads)),
      bias_(tray.Input<float>(problem.q_heads)),
      decay_(tray.Input<float>(problem.q_heads)),
      top_k_(tray.Input<int32_t>(problem.q_heads)),
      positions_(tray.Input<int64_t>(problem.tokens)) {
  for (const HeadRule& head : request.heads) decays_ |= head.decay > 0;
}

void RankingTray::Fill(const RetrieveRequest& request, const DeviceTray& tray, cuda::AttendProblem& problem) const {
  for (size_t i = 0; i < request.heads.size(); ++i) {
    const HeadRule& head = request.heads[i];
    tray.Host(scale_)[i] = head.scale;
    tray.Host(bias_)[i] = request.joint ? head.memory_bias : 0.0f;
    tray.Host(decay_)[i] = head.decay;
    tray.Host(top_k_)[i] = static_cast<int32_t>(head.top_k);
  }
  problem.scale = tray.OnDevice(scale_);
  problem.bias = tray.OnDevice(bias_);
  problem.head_top_k = tray.OnDevice(top_k_);
  if (!decays_) return;
  problem.decay = tray.OnDevice(decay_);
  problem.positions = tray.OnDevice(positions_);
}

}  // namespace mneme
