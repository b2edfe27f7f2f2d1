// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_DEVICE_STAGED_TENSORS_H_
#define MNEME_MEMORY_DEVICE_STAGED_TENSORS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"

#include "base/tensor.h"
#include "memory/device/device.h"

namespace mneme {

// The tensors of one call that lie on a device, for an engine that works in host memory: CopyToHost gives each of them
// a copy in pinned host memory and points the tensor to it, CopyToDevice writes the outputs back. All copies are queued
// on the call's stream, and the calling thread waits for them: twice a call at most.
class StagedTensors {
 public:
  // Without has_stream the copies use a stream of the engine's own, so work that writes the inputs must have ended.
  StagedTensors(bool has_stream, void* stream) : has_stream_(has_stream), stream_(stream) {}
  ~StagedTensors();
  StagedTensors(const StagedTensors&) = delete;
  StagedTensors& operator=(const StagedTensors&) = delete;

  // Adds a tensor that lies on `device`, the same for all. It must not move, because CopyToHost changes it.
  void AddInput(Device& device, RowTensor* tensor);
  void AddOutput(Device& device, MutableRowTensor* tensor);

  Device* device() const { return device_; }  // null: no tensor lies on a device
  bool has_stream() const { return has_stream_; }
  void* stream() const { return stream_; }

  // Copies the inputs and waits for them. The outputs' copies have no contents yet.
  absl::Status CopyToHost();
  // Copies the outputs and waits until they are there. Requires: CopyToHost.
  absl::Status CopyToDevice();

 private:
  // A tensor as it lies on the device.
  struct Tensor {
    void* data = nullptr;
    DType dtype = DType::kF32;
    int64_t rows = 0, heads = 0, dim = 0, row_stride = 0, head_stride = 0;
    int64_t host_offset = 0;  // of its copy, in the context's host buffer

    int64_t bytes() const { return rows * heads * dim * static_cast<int64_t>(DTypeSize(dtype)); }
  };
  // Rows of equal length at regular distances on both sides; offsets and pitches in bytes.
  struct CopyRows {
    int64_t host_offset, host_pitch, device_offset, device_pitch, bytes, rows;
  };

  template <typename View>
  static Tensor Describe(const View& view);
  absl::Status QueueCopy(const Tensor& tensor, bool to_host);
  absl::Status QueueCopyRows(const Tensor& tensor, const CopyRows& rows, bool to_host);
  absl::Status Wait();
  void* copy_stream() const { return has_stream_ ? stream_ : context_->stream(); }

  const bool has_stream_;
  void* const stream_;
  Device* device_ = nullptr;
  std::vector<Tensor> inputs_, outputs_;
  std::vector<RowTensor*> input_views_;
  std::vector<MutableRowTensor*> output_views_;
  std::unique_ptr<CallContext> context_;
  bool idle_ = true;  // no copy of this call may be running
};

}  // namespace mneme

#endif  // MNEME_MEMORY_DEVICE_STAGED_TENSORS_H_
