// SPDX-License-Identifier: Apache-2.0
#include "index/faiss/faiss_lane.h"

#include <array>
#include <map>
#include <utility>

#include "absl/base/thread_annotations.h"

namespace mneme {
namespace {

// So many searches at once on a device. One fills it already when keys are many; more only hide each other's launches,
// while each costs its scratch memory.
constexpr size_t kLanes = 4;

using Lanes = std::array<std::weak_ptr<FaissLane>, kLanes>;

struct Table {
  Mutex mutex;
  std::map<std::pair<int, size_t>, Lanes> lanes ABSL_GUARDED_BY(mutex);
};

// Of the process: indices that know nothing of each other share what a device has only one of. Never destroyed.
Table& AllLanes() {
  static auto* const table = new Table;
  return *table;
}

}  // namespace

FaissLane::FaissLane(int of_device, size_t scratch_bytes) : device(of_device) {
  resources.setTempMemory(scratch_bytes);
  // FAISS would page batches of hundreds of megabytes through this, and 256 MiB of it; it pages without it as well.
  resources.setPinnedMemory(0);
}

std::shared_ptr<FaissLane> ShareFaissLane(int device, size_t scratch_bytes) {
  Table& table = AllLanes();
  MutexLock lock(&table.mutex);
  std::weak_ptr<FaissLane>* least = nullptr;
  for (std::weak_ptr<FaissLane>& lane : table.lanes[{device, scratch_bytes}]) {
    if (least == nullptr || lane.use_count() < least->use_count()) least = &lane;
  }
  std::shared_ptr<FaissLane> lane = least->lock();
  if (lane == nullptr) {
    lane = std::make_shared<FaissLane>(device, scratch_bytes);
    *least = lane;
  }
  return lane;
}

}  // namespace mneme
