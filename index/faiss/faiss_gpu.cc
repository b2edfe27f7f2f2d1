// SPDX-License-Identifier: Apache-2.0
#include "index/faiss/faiss_gpu.h"

#include <cuda_runtime_api.h>
#include <faiss/IndexFlat.h>
#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/gpu/GpuCloner.h>
#include <faiss/gpu/GpuIndexFlat.h>
#include <faiss/gpu/GpuIndexIVFFlat.h>
#include <faiss/gpu/GpuIndexIVFPQ.h>
#include <faiss/gpu/impl/IndexUtils.h>
#include <faiss/gpu/utils/DeviceUtils.h>

#include <algorithm>
#include <stdexcept>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "index/faiss/faiss_blob.h"
#include "index/faiss/faiss_call.h"
#include "index/faiss/faiss_gpu_resources.h"

namespace mneme {
namespace {

namespace gpu = faiss::gpu;

constexpr int32_t kScratchMib = 64;

size_t ScratchBytes(const IndexSpec& spec) {
  return static_cast<size_t>(spec.scratch_mib > 0 ? spec.scratch_mib : kScratchMib) << 20;
}

// Throws if `error` is an error. Requires: the caller runs inside CallFaiss.
void Check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

int CurrentDevice() {
  int device = 0;
  Check(cudaGetDevice(&device));
  return device;
}

// FAISS aborts the process when CUDA reports an error that it does not expect. This finds errors that are there
// already, left behind by the host or by a device that has failed, and throws them.
void CheckNothingPending(gpu::StandardGpuResources& resources, int device) {
  Check(cudaPeekAtLastError());
  Check(cudaStreamQuery(resources.getDefaultStream(device)));
}

bool OnDevice(const void* memory) {
  cudaPointerAttributes attributes;
  Check(cudaPointerGetAttributes(&attributes, memory));
  return attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
}

// cuVS would train its own lists and takes no other coarse quantiser; here mneme trains the lists.
template <typename Config>
Config ConfigFor(int device) {
  Config config;
  config.device = device;
  config.use_cuvs = false;
  return config;
}

template <typename Config>
Config IvfConfigFor(int device) {
  Config config = ConfigFor<Config>(device);
  config.flatConfig.device = device;
  config.flatConfig.use_cuvs = false;
  return config;
}

int64_t MaxSelected() {
  return gpu::getMaxKSelection(/*use_cuvs=*/false);
}

std::unique_ptr<faiss::Index> CopyToDevice(faiss::Index& index, gpu::StandardGpuResources& resources, int device) {
  if (const auto* flat = dynamic_cast<const faiss::IndexFlat*>(&index)) {
    return std::make_unique<gpu::GpuIndexFlat>(&resources, flat, ConfigFor<gpu::GpuIndexFlatConfig>(device));
  }
  auto& ivf = dynamic_cast<faiss::IndexIVF&>(index);
  ivf.nprobe = std::min(ivf.nprobe, static_cast<size_t>(MaxSelected()));
  if (const auto* pq = dynamic_cast<const faiss::IndexIVFPQ*>(&ivf)) {
    auto config = IvfConfigFor<gpu::GpuIndexIVFPQConfig>(device);
    // A query's table of products lies in shared memory, as f16 if f32 does not fit.
    config.useFloat16LookupTables = pq->pq.M * pq->pq.ksub * sizeof(float) > gpu::getMaxSharedMemPerBlock(device);
    return std::make_unique<gpu::GpuIndexIVFPQ>(&resources, pq, config);
  }
  return std::make_unique<gpu::GpuIndexIVFFlat>(&resources, &dynamic_cast<const faiss::IndexIVFFlat&>(ivf),
                                                IvfConfigFor<gpu::GpuIndexIVFFlatConfig>(device));
}

class GpuFaissIndex final : public KeyIndex {
 public:
  // index: a structure on the device of `gpu_resources`, made with them.
  GpuFaissIndex(FaissShape shape, KeyCenter center, std::shared_ptr<FaissGpuResources> gpu_resources,
                std::unique_ptr<faiss::Index> index, size_t bytes)
      : shape_(shape),
        center_(std::move(center)),
        rows_(index->ntotal),
        bytes_(bytes),
        gpu_resources_(std::move(gpu_resources)),
        index_(std::move(index)) {}

  ~GpuFaissIndex() override {
    MutexLock lock(&gpu_resources_->mutex);
    index_.reset();
  }

  int64_t rows() const override { return rows_; }
  int64_t dim() const override { return center_.dim(); }
  bool exact() const override { return IsExact(shape_); }
  std::string Where() const override { return absl::StrCat("cuda:", gpu_resources_->device); }

  absl::Status Search(const float* queries, int64_t count, int64_t fetch, int64_t* rows) const override {
    MNEME_RETURN_IF_ERROR(CheckSearch(nullptr, count, fetch, dim()));
    if (count == 0 || fetch == 0) return absl::OkStatus();
    bool queries_on_device = false, rows_on_device = false;
    MNEME_RETURN_IF_ERROR(CallFaiss(shape_.Text(), [&] {
      queries_on_device = OnDevice(queries);
      rows_on_device = OnDevice(rows);
    }));
    if (!queries_on_device) MNEME_RETURN_IF_ERROR(CheckSearch(queries, count, fetch, dim()));
    const int64_t found = std::min({fetch, rows_, MaxSelected()});
    MutexLock lock(&gpu_resources_->mutex);
    const faiss::Index& index = *index_;
    return CallFaiss(shape_.Text(), [&] {
      const gpu::DeviceScope scope(gpu_resources_->device);
      CheckNothingPending(gpu_resources_->resources, gpu_resources_->device);
      if (rows_on_device) {
        SearchIntoDevice(index, queries, count, fetch, found, rows);
      } else {
        std::vector<float> scores(static_cast<size_t>(count * found));
        std::vector<int64_t> labels(static_cast<size_t>(count * found));
        index.search(count, queries, found, scores.data(), labels.data());
        PadRows(labels.data(), count, found, fetch, rows);
      }
    });
  }

  absl::StatusOr<std::string> Serialize() const override {
    std::unique_ptr<faiss::Index> host;
    {
      MutexLock lock(&gpu_resources_->mutex);
      const faiss::Index& index = *index_;
      MNEME_RETURN_IF_ERROR(CallFaiss(shape_.Text(), [&] {
        CheckNothingPending(gpu_resources_->resources, gpu_resources_->device);
        host.reset(gpu::index_gpu_to_cpu(&index));
      }));
    }
    return WriteFaissBlob(shape_, center_, *host);
  }

  size_t MemoryBytes() const override { return sizeof(*this) + center_.mean.size() * sizeof(float) + bytes_; }

 private:
  // rows [count, fetch] in device memory; complete when it returns. Requires: gpu_resources_->mutex is held; its device
  // is the current one.
  void SearchIntoDevice(const faiss::Index& index, const float* queries, int64_t count, int64_t fetch, int64_t found,
                        int64_t* rows) const {
    const std::shared_ptr<gpu::GpuResources> resources = gpu_resources_->resources.getResources();
    const cudaStream_t stream = resources->getDefaultStream(gpu_resources_->device);
    const auto scratch = [&](int64_t width) {
      return resources->allocMemoryHandle(gpu::AllocRequest(gpu::AllocType::Other, gpu_resources_->device,
                                                            gpu::MemorySpace::Temporary, stream,
                                                            static_cast<size_t>(count * found * width)));
    };
    gpu::GpuMemoryReservation scores = scratch(sizeof(float));
    if (found == fetch) {
      index.search(count, queries, found, static_cast<float*>(scores.get()), rows);
    } else {
      constexpr size_t kRow = sizeof(int64_t);
      gpu::GpuMemoryReservation labels = scratch(kRow);
      index.search(count, queries, found, static_cast<float*>(scores.get()), static_cast<int64_t*>(labels.get()));
      Check(cudaMemsetAsync(rows, 0xff, static_cast<size_t>(count * fetch) * kRow, stream));  // -1
      Check(cudaMemcpy2DAsync(rows, static_cast<size_t>(fetch) * kRow, labels.get(), static_cast<size_t>(found) * kRow,
                              static_cast<size_t>(found) * kRow, static_cast<size_t>(count), cudaMemcpyDeviceToDevice,
                              stream));
    }
    Check(cudaStreamSynchronize(stream));
  }

  const FaissShape shape_;
  const KeyCenter center_;
  const int64_t rows_;
  const size_t bytes_;  // on the device
  const std::shared_ptr<FaissGpuResources> gpu_resources_;
  std::unique_ptr<faiss::Index> index_ ABSL_GUARDED_BY(gpu_resources_->mutex);
};

}  // namespace

std::string MissingForGpuKind(IndexKind kind) {
  return kind == IndexKind::kGpuCagra ? "FAISS's indices of cuVS, which mneme does not link yet" : "";
}

std::string GpuNote() {
  return GpuDevice().ok() ? " with GPU" : " with GPU, no device";
}

absl::Status GpuDevice() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaSuccess && devices > 0) return absl::OkStatus();
  cudaGetLastError();  // clears the error, so that the host does not find it
  return absl::UnavailableError(
      absl::StrCat("no CUDA device: ", cudaGetErrorString(error == cudaSuccess ? cudaErrorNoDevice : error)));
}

std::unique_ptr<faiss::Index> MakeGpuAssigner(const IndexSpec& spec, int64_t dim) {
  const int device = CurrentDevice();
  FaissGpuResources own(device, ScratchBytes(spec));
  CheckNothingPending(own.resources, device);
  // The index keeps the resources alive.
  return std::make_unique<gpu::GpuIndexFlatL2>(&own.resources, static_cast<int>(dim),
                                               ConfigFor<gpu::GpuIndexFlatConfig>(device));
}

absl::StatusOr<std::unique_ptr<KeyIndex>> CopyToGpu(const IndexSpec& spec, const FaissShape& shape,
                                                    const KeyCenter& center, faiss::Index& index) {
  std::unique_ptr<KeyIndex> result;
  MNEME_RETURN_IF_ERROR(CallFaiss(shape.Text(), [&] {
    const int device = CurrentDevice();
    const std::shared_ptr<FaissGpuResources> gpu_resources = ShareFaissGpuResources(device, ScratchBytes(spec));
    const size_t bytes = StructureBytes(index);
    MutexLock lock(&gpu_resources->mutex);
    CheckNothingPending(gpu_resources->resources, device);
    std::unique_ptr<faiss::Index> copy = CopyToDevice(index, gpu_resources->resources, device);
    result = std::make_unique<GpuFaissIndex>(shape, center, gpu_resources, std::move(copy), bytes);
  }));
  return result;
}

}  // namespace mneme
