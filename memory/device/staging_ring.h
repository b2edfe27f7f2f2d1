// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_DEVICE_STAGING_RING_H_
#define MNEME_MEMORY_DEVICE_STAGING_RING_H_

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

#include "attention/cuda/runtime.h"
#include "base/mutex.h"

namespace mneme {

// Slots of pinned host memory, through which data that is not pinned is copied to the device. Thread-safe.
class StagingRing {
 public:
  static constexpr int64_t kSlotBytes = int64_t{256} << 10;

  // The runtime outlives the object.
  explicit StagingRing(cuda::Runtime& runtime) : runtime_(runtime) {}
  ~StagingRing();
  StagingRing(const StagingRing&) = delete;
  StagingRing& operator=(const StagingRing&) = delete;

  // Has `fill` write `bytes` <= kSlotBytes to a slot, and `queue` queue on `stream` the copies that read them. Waits
  // only if all slots are in use by copies that have not run.
  absl::Status Copy(int64_t bytes, void* stream, absl::FunctionRef<void(char* to)> fill,
                    absl::FunctionRef<absl::Status(const char* from)> queue);

 private:
  static constexpr size_t kSlots = 32;
  struct Slot {
    void* event = nullptr;  // behind the copies that read the slot
    bool used = false;
    bool lost = false;  // the event could not be recorded, so the slot is never known to be free again
  };

  absl::Status Allocate() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  cuda::Runtime& runtime_;
  Mutex mutex_;
  char* data_ ABSL_GUARDED_BY(mutex_) = nullptr;  // [kSlots][kSlotBytes]
  std::vector<Slot> slots_ ABSL_GUARDED_BY(mutex_);
  size_t next_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_DEVICE_STAGING_RING_H_
