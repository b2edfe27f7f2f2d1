// SPDX-License-Identifier: Apache-2.0
#include "memory/device/staging_ring.h"

#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "memory/device/device_buffer.h"

namespace mneme {

StagingRing::~StagingRing() {
  for (const Slot& slot : slots_) runtime_.DeleteEvent(slot.event);
  if (data_ != nullptr) runtime_.FreeHost(data_);
}

absl::Status StagingRing::Allocate() {
  if (data_ == nullptr) {
    void* data = nullptr;
    MNEME_RETURN_IF_ERROR(DeviceStatus(runtime_.AllocateHost(static_cast<int64_t>(kSlots) * kSlotBytes, &data)));
    data_ = static_cast<char*>(data);
  }
  while (slots_.size() < kSlots) {
    Slot slot;
    MNEME_RETURN_IF_ERROR(DeviceStatus(runtime_.NewEvent(&slot.event)));
    slots_.push_back(slot);
  }
  return absl::OkStatus();
}

absl::Status StagingRing::Copy(int64_t bytes, void* stream, absl::FunctionRef<void(char* to)> fill,
                               absl::FunctionRef<absl::Status(const char* from)> queue) {
  if (bytes > kSlotBytes) {
    return absl::InternalError(absl::StrCat("device: expected at most ", kSlotBytes, " bytes a slot, got ", bytes));
  }
  MutexLock lock(&mutex_);
  MNEME_RETURN_IF_ERROR(Allocate());
  for (size_t tried = 0; tried < kSlots && slots_[next_].lost; ++tried) next_ = (next_ + 1) % kSlots;
  Slot& slot = slots_[next_];
  if (slot.lost) return absl::UnavailableError("device: no pinned memory is known to be free any more");
  if (slot.used && !runtime_.Done(slot.event)) {
    MNEME_RETURN_IF_ERROR(DeviceStatus(runtime_.Synchronise(slot.event)));
  }
  char* const at = data_ + static_cast<int64_t>(next_) * kSlotBytes;
  next_ = (next_ + 1) % kSlots;
  fill(at);
  // If `queue` fails half-way, the copies that it did queue still read the slot.
  absl::Status status = queue(at);
  const absl::Status recorded = DeviceStatus(runtime_.Record(slot.event, stream));
  slot.used = true;
  slot.lost = !recorded.ok();
  status.Update(recorded);
  return status;
}

}  // namespace mneme
