// SPDX-License-Identifier: Apache-2.0
#include "capi/src/handles.h"

#include <algorithm>
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
  return Fill(Reserve(), kind, std::move(object));
}

size_t HandleTable::Reserve() {
  MutexLock lock(&mutex_);
  if (!free_.empty()) {
    const size_t place = free_.back();
    free_.pop_back();
    return place;
  }
  // Room in both before either changes, so that Remove and GiveBack cannot fail.
  if (slots_.size() == slots_.capacity()) slots_.reserve(std::max<size_t>(16, 2 * slots_.size()));
  free_.reserve(slots_.capacity());
  slots_.emplace_back();
  return slots_.size() - 1;
}

uint64_t HandleTable::Fill(size_t place, HandleKind kind, std::shared_ptr<void> object) noexcept {
  MutexLock lock(&mutex_);
  Slot& slot = slots_[place];
  slot.kind = kind;
  slot.object = std::move(object);
  // Generations start at 1, so that no handle looks like a small number.
  slot.generation = (slot.generation + 1) & 0xffffffffu;
  if (slot.generation == 0) slot.generation = 1;
  return Compose(kind, place, slot.generation);
}

void HandleTable::GiveBack(size_t place) noexcept {
  MutexLock lock(&mutex_);
  free_.push_back(place);
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
