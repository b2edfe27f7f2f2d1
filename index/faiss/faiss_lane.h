// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_FAISS_FAISS_LANE_H_
#define MNEME_INDEX_FAISS_FAISS_LANE_H_

// Internal to index/, only in builds whose FAISS has GPU indices.

#include <faiss/gpu/StandardGpuResources.h>

#include <cstddef>
#include <memory>

#include "base/mutex.h"

namespace mneme {

// What FAISS needs to work on a device: streams, a cuBLAS handle and scratch memory. FAISS lets one thread at a time
// use it, and an index keeps to the one that it was made with, even to be read or freed: whoever calls such an index
// holds `mutex`. Searches of indices on different lanes run side by side.
struct FaissLane {
  FaissLane(int device, size_t scratch_bytes);

  Mutex mutex;
  const int device;
  faiss::gpu::StandardGpuResources resources;
};

// A lane for one more index on `device`: there are a few a device and scratch size, however many indices, and each is
// freed with the last of its indices. Thread-safe. FAISS takes the scratch memory when the lane is first used, at most
// 1.5 GiB.
std::shared_ptr<FaissLane> ShareFaissLane(int device, size_t scratch_bytes);

}  // namespace mneme

#endif  // MNEME_INDEX_FAISS_FAISS_LANE_H_
