// SPDX-License-Identifier: Apache-2.0
#include "memory/device/call_context.h"

#include "base/status.h"

namespace mneme {

absl::StatusOr<std::unique_ptr<CallContext>> CallContext::New(cuda::Runtime& runtime, cuda::DeviceBudget& budget) {
  MNEME_ASSIGN_OR_RETURN(std::shared_ptr<DeviceStream> stream, DeviceStream::New(runtime));
  std::unique_ptr<CallContext> context(new CallContext(std::move(stream), budget));
  MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.NewEvent(&context->event_)));
  return context;
}

CallContext::~CallContext() {
  cuda::Runtime& runtime = stream_->runtime();
  if (event_ != nullptr) runtime.DeleteEvent(event_);
  if (host_data_ != nullptr) runtime.FreeHost(host_data_);
}

absl::Status CallContext::Grow(std::unique_ptr<DeviceBuffer>& buffer, int64_t bytes) {
  if (bytes == 0 || (buffer != nullptr && buffer->bytes() >= bytes)) return absl::OkStatus();
  buffer.reset();
  MNEME_ASSIGN_OR_RETURN(buffer, DeviceBuffer::New(stream_, budget_, bytes));
  return absl::OkStatus();
}

absl::Status CallContext::Reserve(int64_t bytes) {
  MNEME_RETURN_IF_ERROR(Grow(device_data_, bytes));
  return ReserveHost(bytes);
}

absl::Status CallContext::ReserveHost(int64_t bytes) {
  if (host_bytes_ >= bytes) return absl::OkStatus();
  cuda::Runtime& runtime = stream_->runtime();
  if (host_data_ != nullptr) runtime.FreeHost(host_data_);
  host_data_ = nullptr;
  host_bytes_ = 0;
  void* data = nullptr;
  MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.AllocateHost(bytes, &data)));
  host_data_ = static_cast<char*>(data);
  host_bytes_ = bytes;
  return absl::OkStatus();
}

}  // namespace mneme
