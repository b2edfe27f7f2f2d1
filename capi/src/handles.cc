// SPDX-License-Identifier: Apache-2.0
#include "capi/src/handles.h"

#include <utility>

namespace mneme::capi {
namespace {

// Bits of a handle, from below: kind (3), slot (29), generation (32).
constexpr uint64_t kKindBits = 3;
constexpr uint64_t kSlotBits = 29;

uint64_t Compose(HandleKind kind, size_t slot, uint64_t generation) {
  return static_cast<uint64_t>(kind) | static_cast<uint64_t>(slot) << kKindBits | generation << (kKindBits + kSlotBits);
}

}  // namespace

HandleTable& HandleTable::Get() {
  // Never destroyed: a host may release handles while the process ends.
  static auto* const table = new HandleTable;
  return *table;
}

uint64_t HandleTable::Add(HandleKind kind, std::shared_ptr<void> object) {
  MutexLock lock(&mutex_);
  size_t slot;
  if (free_.empty()) {
    slot = slots_.size();
    slots_.emplace_back();
    free_.reserve(slots_.size());  // so that Remove cannot fail
  } else {
    slot = free_.back();
    free_.pop_back();
  }
  slots_[slot].kind = kind;
  slots_[slot].object = std::move(object);
  // Generations start at 1, so that no handle looks like a small number.
  slots_[slot].generation = (slots_[slot].generation + 1) & 0xffffffffu;
  if (slots_[slot].generation == 0) slots_[slot].generation = 1;
  return Compose(kind, slot, slots_[slot].generation);
}

HandleTable::Slot* HandleTable::SlotOf(HandleKind kind, uint64_t handle) {
  const auto slot = static_cast<size_t>(handle >> kKindBits & ((uint64_t{1} << kSlotBits) - 1));
  if (slot >= slots_.size() || slots_[slot].object == nullptr || slots_[slot].kind != kind ||
      Compose(kind, slot, slots_[slot].generation) != handle) {
    return nullptr;
  }
  return &slots_[slot];
}

std::shared_ptr<void> HandleTable::Find(HandleKind kind, uint64_t handle) {
  MutexLock lock(&mutex_);
  const Slot* slot = SlotOf(kind, handle);
  return slot == nullptr ? nullptr : slot->object;
}

HandleTable::Removal HandleTable::Remove(HandleKind kind, uint64_t handle, bool also_busy) {
  std::shared_ptr<void> object;  // destroyed after the lock is released
  MutexLock lock(&mutex_);
  Slot* slot = SlotOf(kind, handle);
  if (slot == nullptr) return Removal::kUnknown;
  // Calls copy the pointer under this mutex, so a count of one means that none is running.
  if (!also_busy && slot->object.use_count() > 1) return Removal::kBusy;
  object = std::move(slot->object);
  slot->object = nullptr;
  free_.push_back(static_cast<size_t>(slot - slots_.data()));
  return Removal::kRemoved;
}

}  // namespace mneme::capi
