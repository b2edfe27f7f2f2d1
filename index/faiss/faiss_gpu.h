// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_FAISS_FAISS_GPU_H_
#define MNEME_INDEX_FAISS_FAISS_GPU_H_

// Internal to index/: FAISS's structures on a GPU. Implemented by faiss_gpu.cc if the build's FAISS has GPU indices,
// else by faiss_gpu_off.cc.

#include <faiss/Index.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "index/faiss/faiss_structure.h"

namespace mneme {

// Returns: what this build lacks for `kind`, one of the gpu kinds; empty if it lacks nothing.
std::string MissingForGpuKind(IndexKind kind);

// Returns: what FaissVersion says about the GPU: "", " with GPU" or " with GPU, no device".
std::string GpuNote();

// Whether the calling thread can use a device now. Creates no CUDA context.
// Errors: Unavailable; Unimplemented in a build without gpu kinds. The message says what is missing.
absl::Status GpuDevice();

// Returns: an empty index by Euclidean distance over `dim` dimensions on the calling thread's device, with resources of
// its own, to train and fill lists (BuildStructure). It takes vectors in host memory. Throws what FAISS throws.
// Requires: GpuDevice() is OK.
std::unique_ptr<faiss::Index> MakeGpuAssigner(const IndexSpec& spec, int64_t dim);

// Copies `index`, a structure of `shape` on the host, to the calling thread's device. The number of lists that `index`
// probes is cut to FAISS's limit. Requires: GpuDevice() is OK.
// Errors: ResourceExhausted or Internal with FAISS's message if the device does not take it; `index` then serves on the
// host.
absl::StatusOr<std::unique_ptr<KeyIndex>> CopyToGpu(const IndexSpec& spec, const FaissShape& shape,
                                                    const KeyCenter& center, faiss::Index& index);

}  // namespace mneme

#endif  // MNEME_INDEX_FAISS_FAISS_GPU_H_
