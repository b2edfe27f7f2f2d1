// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_DEVICE_DEVICE_BUFFER_H_
#define MNEME_MEMORY_DEVICE_DEVICE_BUFFER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "attention/cuda/device_rows.h"
#include "attention/cuda/runtime.h"

namespace mneme {

// Returns: an error of the runtime as Unavailable; OK for "".
absl::Status DeviceStatus(const std::string& error);

// A stream of the engine's own, deleted with its last user. The runtime outlives it.
class DeviceStream {
 public:
  static absl::StatusOr<std::shared_ptr<DeviceStream>> New(cuda::Runtime& runtime);
  ~DeviceStream();
  DeviceStream(const DeviceStream&) = delete;
  DeviceStream& operator=(const DeviceStream&) = delete;

  void* get() const { return stream_; }
  cuda::Runtime& runtime() const { return runtime_; }

 private:
  DeviceStream(cuda::Runtime& runtime, void* stream) : runtime_(runtime), stream_(stream) {}

  cuda::Runtime& runtime_;
  void* const stream_;
};

// Device bytes within a budget. Their stream orders them: work that is queued there between New and the destructor may
// use them.
class DeviceBuffer {
 public:
  // The budget outlives the buffer. Errors: ResourceExhausted if the budget has too few bytes left.
  static absl::StatusOr<std::unique_ptr<DeviceBuffer>> New(std::shared_ptr<DeviceStream> stream,
                                                           cuda::DeviceBudget& budget, int64_t bytes);
  ~DeviceBuffer();
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  char* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  void* stream() const { return stream_->get(); }

 private:
  DeviceBuffer(std::shared_ptr<DeviceStream> stream, cuda::DeviceBudget& budget, int64_t bytes)
      : stream_(std::move(stream)), budget_(budget), bytes_(bytes) {}

  const std::shared_ptr<DeviceStream> stream_;
  cuda::DeviceBudget& budget_;
  const int64_t bytes_;
  char* data_ = nullptr;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_DEVICE_DEVICE_BUFFER_H_
