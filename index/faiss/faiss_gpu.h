// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_FAISS_FAISS_GPU_H_
#define MNEME_INDEX_FAISS_FAISS_GPU_H_

// Internal to index/: FAISS's structures on a GPU. faiss_gpu.cc where the FAISS of the build has them, else
// faiss_gpu_off.cc.

#include <faiss/Index.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "index/faiss/faiss_structure.h"

namespace mneme {

// What this build's FAISS lacks for `kind`, one of the gpu kinds; empty if it is built in.
std::string MissingForGpuKind(IndexKind kind);

// What FaissVersion says of it: "", " with GPU", " with GPU, no device".
std::string GpuNote();

// OK if the calling thread can use a device now; else Unavailable (Unimplemented in a build without gpu kinds) with
// what is missing. Creates no context.
absl::Status GpuDevice();

// An empty index by Euclidean distance over `dim` dims on the calling thread's device, with resources of its own: what
// k-means and lists are assigned by. Takes vectors in host memory. Only after GpuDevice; throws what FAISS throws.
std::unique_ptr<faiss::Index> MakeGpuAssigner(const IndexSpec& spec, int64_t dim);

// A copy of `index`, a structure of `shape` on the host, on the calling thread's device. FAISS's limits are applied to
// what `index` looks at in a search. Only after GpuDevice; ResourceExhausted or Internal with FAISS's words if the
// device does not take it: it then serves from the host.
absl::StatusOr<std::unique_ptr<KeyIndex>> CopyToGpu(const IndexSpec& spec, const FaissShape& shape,
                                                    const KeySpace& space, faiss::Index& index);

}  // namespace mneme

#endif  // MNEME_INDEX_FAISS_FAISS_GPU_H_
