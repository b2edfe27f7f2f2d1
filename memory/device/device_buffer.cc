// SPDX-License-Identifier: Apache-2.0
#include "memory/device/device_buffer.h"

#include "absl/strings/str_cat.h"

#include "base/status.h"

namespace mneme {

absl::Status DeviceStatus(const std::string& error) {
  return error.empty() ? absl::OkStatus() : absl::UnavailableError(absl::StrCat("device: ", error));
}

absl::StatusOr<std::shared_ptr<DeviceStream>> DeviceStream::New(cuda::Runtime& runtime) {
  void* stream = nullptr;
  MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.NewStream(&stream)));
  return std::shared_ptr<DeviceStream>(new DeviceStream(runtime, stream));
}

DeviceStream::~DeviceStream() {
  runtime_.DeleteStream(stream_);
}

absl::StatusOr<std::unique_ptr<DeviceBuffer>> DeviceBuffer::New(std::shared_ptr<DeviceStream> stream,
                                                                cuda::DeviceBudget& budget, int64_t bytes) {
  if (!budget.Take(bytes)) {
    return absl::ResourceExhaustedError(absl::StrCat("device_budget_bytes: expected room for ", bytes,
                                                     " bytes more, got ", budget.bytes() - budget.used()));
  }
  // From here on the destructor returns the bytes to the budget.
  std::unique_ptr<DeviceBuffer> buffer(new DeviceBuffer(std::move(stream), budget, bytes));
  void* data = nullptr;
  MNEME_RETURN_IF_ERROR(DeviceStatus(buffer->stream_->runtime().Allocate(bytes, buffer->stream_->get(), &data)));
  buffer->data_ = static_cast<char*>(data);
  return buffer;
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) stream_->runtime().Free(data_, stream_->get());
  budget_.Give(bytes_);
}

}  // namespace mneme
