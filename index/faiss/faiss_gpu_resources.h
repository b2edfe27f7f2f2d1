// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_FAISS_FAISS_GPU_RESOURCES_H_
#define MNEME_INDEX_FAISS_FAISS_GPU_RESOURCES_H_

// Internal to index/faiss, only in builds whose FAISS has GPU indices.

#include <faiss/gpu/StandardGpuResources.h>

#include <cstddef>
#include <memory>

#include "base/mutex.h"

namespace mneme {

// The streams, cuBLAS handle and scratch memory that FAISS needs on a device. FAISS lets one thread at a time use them,
// and an index keeps the resources that it was made with, even for being read or freed. So whoever calls such an index
// must hold `mutex`. Indices with different resources are searched side by side.
struct FaissGpuResources {
  FaissGpuResources(int device, size_t scratch_bytes);

  Mutex mutex;
  const int device;
  faiss::gpu::StandardGpuResources resources;
};

// Returns: resources for one more index on `device`. However many indices there are, each pair of device and scratch
// size has only a few resources, and the last index frees them. FAISS allocates the scratch memory, at most 1.5 GiB,
// when they are first used. Thread-safe.
std::shared_ptr<FaissGpuResources> ShareFaissGpuResources(int device, size_t scratch_bytes);

}  // namespace mneme

#endif  // MNEME_INDEX_FAISS_FAISS_GPU_RESOURCES_H_
