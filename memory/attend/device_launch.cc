// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/device_launch.h"

#include <memory>
#include <utility>

#include "base/status.h"
#include "memory/device/mirror_locks.h"

namespace mneme {

absl::StatusOr<bool> DeviceLaunch::Run(Device& device, absl::Span<MemoryMirror* const> mirrors,
                                       const StreamChoice& choice) {
  MNEME_ASSIGN_OR_RETURN(std::unique_ptr<CallContext> context, device.BorrowContext());
  void* const stream = choice.has_stream ? choice.stream : context->stream();
  absl::StatusOr<bool> queued = false;
  {
    MirrorLocks locks;
    for (MemoryMirror* mirror : mirrors) locks.Add(mirror);
    locks.LockAll();
    queued = Queue(*context, stream);
    if (queued.ok() && *queued) {
      if (const absl::Status status = locks.ReleaseAllAfter(context->event()); !status.ok()) queued = status;
    }
    if (!queued.ok() && !absl::IsResourceExhausted(queued.status())) {
      locks.ClearAllBehind(*context, device.runtime(), stream);
    }
  }
  const bool no_room = absl::IsResourceExhausted(queued.status());
  if (no_room || (queued.ok() && !*queued)) {
    device.ReturnContext(std::move(context), /*busy=*/false);
    return false;
  }
  // After an error the context is destroyed, which waits for the work that uses it.
  MNEME_RETURN_IF_ERROR(queued.status());
  const bool waits = !choice.has_stream || HasHostOutputs();
  if (waits) {
    MNEME_RETURN_IF_ERROR(DeviceStatus(device.runtime().Synchronise(context->event())));
    ReadOutputs();
  }
  device.ReturnContext(std::move(context), /*busy=*/!waits);
  return true;
}

}  // namespace mneme
