// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_DEVICE_LAUNCH_H_
#define MNEME_MEMORY_ATTEND_DEVICE_LAUNCH_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "memory/device/call_context.h"
#include "memory/device/device.h"
#include "memory/device/mirror.h"

namespace mneme {

// The stream on which a launch is queued.
struct StreamChoice {
  bool has_stream = false;  // false: a stream of the engine's own, and the calling thread waits for the launch
  void* stream = nullptr;
};

// One launch of the kernels over rows of memories that lie on the device (their mirrors). The virtual functions are
// what DeviceSearch and DeviceFusedAttend do differently.
class DeviceLaunch {
 public:
  virtual ~DeviceLaunch() = default;

  // Locks the mirrors, queues the work, and waits for it if the launch has outputs to read or no stream.
  // mirrors: whose rows Queue acquires; entries may repeat.
  // Returns: false if the device has no room, for rows or for the launch; then no work was queued.
  // Errors: Unavailable if the device failed. The mirrors have dropped their rows then.
  absl::StatusOr<bool> Run(Device& device, absl::Span<MemoryMirror* const> mirrors, const StreamChoice& choice);

 protected:
  // Acquires rows and queues all work on `stream`; the context's event stands behind it.
  // Requires: the mirrors are locked. Returns: false if rows cannot be had; then no work was queued.
  virtual absl::StatusOr<bool> Queue(CallContext& context, void* stream) = 0;
  // Whether ReadOutputs has anything to read.
  virtual bool HasHostOutputs() const = 0;
  // After the work has run: takes its outputs from the context's host buffer.
  virtual void ReadOutputs() = 0;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_DEVICE_LAUNCH_H_
