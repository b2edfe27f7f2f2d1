// SPDX-License-Identifier: Apache-2.0
#include "memory/device/argument_buffer.h"

#include "base/status.h"

namespace mneme {

absl::Status ArgumentBuffer::Reserve(CallContext& context) {
  MNEME_RETURN_IF_ERROR(context.Reserve(end_));
  Place(context.host_data(), context.device_data());
  return absl::OkStatus();
}

absl::Status ArgumentBuffer::Launch(CallContext& context, cuda::Runtime& runtime, const cuda::AttendProblem& problem,
                                    const cuda::AttendBounds& bounds, void* stream) {
  cuda::AttendPlan plan;
  MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.Prepare(problem, bounds, &plan)));
  MNEME_RETURN_IF_ERROR(context.ReserveWorkspace(plan.workspace_bytes));
  // The context's own stream orders its buffers.
  if (stream != context.stream()) {
    MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.Record(context.event(), context.stream())));
    MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.Wait(stream, context.event())));
  }
  MNEME_RETURN_IF_ERROR(
      DeviceStatus(runtime.Copy({host_, input_bytes_, device_, input_bytes_, input_bytes_, 1}, stream)));
  MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.Attend(problem, plan, context.workspace(), stream)));
  const int64_t output_bytes = end_ - input_bytes_;
  if (output_bytes > 0) {
    MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.Copy(
        {device_ + input_bytes_, output_bytes, host_ + input_bytes_, output_bytes, output_bytes, 1}, stream)));
  }
  MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.Record(context.event(), stream)));
  if (stream == context.stream()) return absl::OkStatus();
  return DeviceStatus(runtime.Wait(context.stream(), context.event()));
}

}  // namespace mneme
