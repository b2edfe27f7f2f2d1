// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_DEVICE_CALL_CONTEXT_H_
#define MNEME_MEMORY_DEVICE_CALL_CONTEXT_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "memory/device/device_buffer.h"

namespace mneme {

// What one call uses on the device: a stream, an event, and buffers on the device and in pinned host memory. The
// buffers grow as calls need them and are reused by later calls. One call at a time.
class CallContext {
 public:
  // The buffers on the device count towards `budget`, which outlives the object.
  static absl::StatusOr<std::unique_ptr<CallContext>> New(cuda::Runtime& runtime, cuda::DeviceBudget& budget);
  // Waits for copies from and to the host buffer.
  ~CallContext();
  CallContext(const CallContext&) = delete;
  CallContext& operator=(const CallContext&) = delete;

  // Makes the buffers at least `bytes` long; their contents are lost. Requires: no work of an earlier call is running.
  // Errors: ResourceExhausted if the budget has too few bytes left.
  absl::Status Reserve(int64_t bytes);  // on the device and on the host
  absl::Status ReserveHost(int64_t bytes);
  absl::Status ReserveWorkspace(int64_t bytes) { return Grow(workspace_, bytes); }

  void* stream() const { return stream_->get(); }
  void* event() const { return event_; }
  char* device_data() const { return device_data_->data(); }
  char* host_data() const { return host_data_; }
  char* workspace() const { return workspace_ == nullptr ? nullptr : workspace_->data(); }  // of the kernels

 private:
  CallContext(std::shared_ptr<DeviceStream> stream, cuda::DeviceBudget& budget)
      : stream_(std::move(stream)), budget_(budget) {}
  absl::Status Grow(std::unique_ptr<DeviceBuffer>& buffer, int64_t bytes);

  const std::shared_ptr<DeviceStream> stream_;
  cuda::DeviceBudget& budget_;
  void* event_ = nullptr;
  std::unique_ptr<DeviceBuffer> device_data_, workspace_;
  char* host_data_ = nullptr;
  int64_t host_bytes_ = 0;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_DEVICE_CALL_CONTEXT_H_
