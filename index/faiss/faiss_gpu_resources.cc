// SPDX-License-Identifier: Apache-2.0
#include "index/faiss/faiss_gpu_resources.h"

#include <array>
#include <map>
#include <utility>

#include "absl/base/thread_annotations.h"

namespace mneme {
namespace {

// Searches that run side by side on a device. With many keys a single search fills the device; more of them only hide
// each other's launches, and each costs its scratch memory.
constexpr size_t kPerDevice = 4;

using SharedResources = std::array<std::weak_ptr<FaissGpuResources>, kPerDevice>;

struct Table {
  Mutex mutex;
  // By device and scratch bytes.
  std::map<std::pair<int, size_t>, SharedResources> resources ABSL_GUARDED_BY(mutex);
};

// One table for the process, because independent indices share a device. Never destroyed.
Table& AllResources() {
  static auto* const table = new Table;
  return *table;
}

}  // namespace

FaissGpuResources::FaissGpuResources(int of_device, size_t scratch_bytes) : device(of_device) {
  resources.setTempMemory(scratch_bytes);
  // FAISS would reserve 256 MiB of pinned memory for paging batches of hundreds of megabytes; it pages without it, too.
  resources.setPinnedMemory(0);
}

std::shared_ptr<FaissGpuResources> ShareFaissGpuResources(int device, size_t scratch_bytes) {
  Table& table = AllResources();
  MutexLock lock(&table.mutex);
  std::weak_ptr<FaissGpuResources>* least = nullptr;
  for (std::weak_ptr<FaissGpuResources>& resources : table.resources[{device, scratch_bytes}]) {
    if (least == nullptr || resources.use_count() < least->use_count()) least = &resources;
  }
  std::shared_ptr<FaissGpuResources> resources = least->lock();
  if (resources == nullptr) {
    resources = std::make_shared<FaissGpuResources>(device, scratch_bytes);
    *least = resources;
  }
  return resources;
}

}  // namespace mneme
