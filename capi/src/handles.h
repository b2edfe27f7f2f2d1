// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_CAPI_SRC_HANDLES_H_
#define MNEME_CAPI_SRC_HANDLES_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

#include "base/model_card.h"
#include "base/mutex.h"
#include "base/parallel.h"
#include "capi/src/boundary.h"
#include "capi/src/metrics.h"
#include "memory/attend/device_graph.h"
#include "memory/memory.h"
#include "memory/store.h"

namespace mneme::capi {

// What the opaque handles stand for.

struct CardObject {
  ModelCard card;
};

struct StoreObject {
  std::unique_ptr<Executor> inner_executor;
  std::unique_ptr<Executor> executor;        // carries exceptions of tasks back to the caller
  std::unique_ptr<CallLatencies> latencies;  // null: not measured
  std::unique_ptr<Store> store;              // last: goes first

  // Where to record how long a call takes; null: nowhere.
  LatencyHistogram* Latency(LatencyHistogram CallLatencies::*of) const {
    return latencies != nullptr ? &(latencies.get()->*of) : nullptr;
  }

  Mutex mutex;
  // Handles of open memories by name, and how often each was opened.
  struct Opened {
    mneme_memory* handle = nullptr;
    int count = 0;
  };
  using OpenedMemories = std::map<std::string, Opened>;
  OpenedMemories opened ABSL_GUARDED_BY(mutex);
  std::atomic<int> graphs{0};     // that are not released
  std::atomic<int> snapshots{0};  // that are not released
};

struct MemoryObject {
  std::shared_ptr<StoreObject> store;
  std::shared_ptr<Memory> memory;
};

struct SnapshotObject {
  SnapshotObject(std::shared_ptr<StoreObject> of, std::shared_ptr<Memory> from, Snapshot taken)
      : store(std::move(of)), memory(std::move(from)), snapshot(std::move(taken)) {
    ++store->snapshots;
  }
  ~SnapshotObject() { --store->snapshots; }
  SnapshotObject(const SnapshotObject&) = delete;
  SnapshotObject& operator=(const SnapshotObject&) = delete;

  const std::shared_ptr<StoreObject> store;
  const std::shared_ptr<Memory> memory;
  const Snapshot snapshot;
};

struct GraphObject {
  GraphObject(std::shared_ptr<StoreObject> of, std::unique_ptr<DeviceGraph> made)
      : store(std::move(of)), graph(std::move(made)) {
    ++store->graphs;
  }
  ~GraphObject() {
    graph.reset();
    --store->graphs;
  }
  GraphObject(const GraphObject&) = delete;
  GraphObject& operator=(const GraphObject&) = delete;

  const std::shared_ptr<StoreObject> store;
  std::unique_ptr<DeviceGraph> graph;
};

// A handle is no pointer but a number: kind, slot and generation. A closed, foreign or invented one is therefore found
// out, never followed.
enum class HandleKind : uint64_t { kCard = 1, kStore = 2, kMemory = 3, kSnapshot = 4, kGraph = 5 };

class HandleTable {
 public:
  static HandleTable& Get();

  uint64_t Add(HandleKind kind, std::shared_ptr<void> object);
  // The same in two steps, of which the second cannot fail. A place that is not filled is given back.
  size_t Reserve();
  uint64_t Fill(size_t place, HandleKind kind, std::shared_ptr<void> object) noexcept;
  void GiveBack(size_t place) noexcept;
  // Null if `handle` is not open or of another kind.
  std::shared_ptr<void> Find(HandleKind kind, uint64_t handle);

  enum class Removal { kRemoved, kUnknown, kBusy };
  // Removes the handle; one that a call is using only if `also_busy`, and then the call's own hold keeps the object.
  Removal Remove(HandleKind kind, uint64_t handle, bool also_busy);

 private:
  struct Slot {
    HandleKind kind{};
    uint64_t generation = 0;
    std::shared_ptr<void> object;
  };
  Slot* SlotOf(HandleKind kind, uint64_t handle) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Mutex mutex_;
  std::vector<Slot> slots_ ABSL_GUARDED_BY(mutex_);
  std::vector<size_t> free_ ABSL_GUARDED_BY(mutex_);
};

template <typename Object>
struct HandleTraits;
template <>
struct HandleTraits<CardObject> {
  using Handle = mneme_card;
  static constexpr HandleKind kKind = HandleKind::kCard;
  static constexpr const char* kWhat = "a card";
};
template <>
struct HandleTraits<StoreObject> {
  using Handle = mneme_store;
  static constexpr HandleKind kKind = HandleKind::kStore;
  static constexpr const char* kWhat = "a store";
};
template <>
struct HandleTraits<MemoryObject> {
  using Handle = mneme_memory;
  static constexpr HandleKind kKind = HandleKind::kMemory;
  static constexpr const char* kWhat = "a memory";
};
template <>
struct HandleTraits<SnapshotObject> {
  using Handle = mneme_snapshot;
  static constexpr HandleKind kKind = HandleKind::kSnapshot;
  static constexpr const char* kWhat = "a snapshot";
};

template <>
struct HandleTraits<GraphObject> {
  using Handle = mneme_graph;
  static constexpr HandleKind kKind = HandleKind::kGraph;
  static constexpr const char* kWhat = "a graph";
};

template <typename Object>
typename HandleTraits<Object>::Handle* NewHandle(std::shared_ptr<Object> object) {
  const uint64_t number = HandleTable::Get().Add(HandleTraits<Object>::kKind, std::move(object));
  return reinterpret_cast<typename HandleTraits<Object>::Handle*>(static_cast<uintptr_t>(number));
}

// A place for a handle that is still to be made.
template <typename Object>
class ReservedHandle {
 public:
  ReservedHandle() : place_(HandleTable::Get().Reserve()) {}
  ~ReservedHandle() {
    if (!filled_) HandleTable::Get().GiveBack(place_);
  }
  ReservedHandle(const ReservedHandle&) = delete;
  ReservedHandle& operator=(const ReservedHandle&) = delete;

  typename HandleTraits<Object>::Handle* Fill(std::shared_ptr<Object> object) noexcept {
    filled_ = true;
    const uint64_t number = HandleTable::Get().Fill(place_, HandleTraits<Object>::kKind, std::move(object));
    return reinterpret_cast<typename HandleTraits<Object>::Handle*>(static_cast<uintptr_t>(number));
  }

 private:
  const size_t place_;
  bool filled_ = false;
};

template <typename Handle>
uint64_t HandleNumber(const Handle* handle) {
  return static_cast<uint64_t>(reinterpret_cast<uintptr_t>(handle));
}

template <typename Object>
absl::Status NotOpen(absl::string_view name) {
  return absl::InvalidArgumentError(absl::StrCat(name, ": expected ", HandleTraits<Object>::kWhat,
                                                 " that is open, got a handle that was closed or is none"));
}

// Null if it is not open.
template <typename Object>
std::shared_ptr<Object> FindOpen(const typename HandleTraits<Object>::Handle* handle) {
  return std::static_pointer_cast<Object>(HandleTable::Get().Find(HandleTraits<Object>::kKind, HandleNumber(handle)));
}

template <typename Object>
absl::StatusOr<std::shared_ptr<Object>> FindHandle(absl::string_view name,
                                                   const typename HandleTraits<Object>::Handle* handle) {
  if (handle == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": expected ", HandleTraits<Object>::kWhat, ", got NULL"));
  }
  std::shared_ptr<Object> object = FindOpen<Object>(handle);
  if (object == nullptr) return NotOpen<Object>(name);
  return object;
}

// Removes a handle; the object goes when its last user lets go of it.
template <typename Object>
absl::Status RemoveHandle(absl::string_view name, const typename HandleTraits<Object>::Handle* handle,
                          bool also_busy = false) {
  switch (HandleTable::Get().Remove(HandleTraits<Object>::kKind, HandleNumber(handle), also_busy)) {
    case HandleTable::Removal::kRemoved: return absl::OkStatus();
    case HandleTable::Removal::kBusy:
      return absl::AbortedError(absl::StrCat(name, " is busy: another call with it is running"));
    case HandleTable::Removal::kUnknown: break;
  }
  return NotOpen<Object>(name);
}

}  // namespace mneme::capi

#endif  // MNEME_CAPI_SRC_HANDLES_H_
