// SPDX-License-Identifier: Apache-2.0
#include "attention/cuda/device_rows.h"

#include <cuda_runtime.h>

#include "attention/cuda/append-inl.h"
#include "attention/cuda/cuda_error.h"
#include "attention/cuda/device_block.cuh"
#include "attention/cuda/rows_layout.h"

namespace mneme::cuda {
namespace {

constexpr int kAppendWarps = 8;

__global__ void __launch_bounds__(kAppendWarps* kLanes) AppendKernel(const __grid_constant__ AppendArgs args) {
  DeviceBlock<kAppendWarps> block;
  AppendRows(block, args);
}

__global__ void AdvanceKernel(MemoryRows* rows, int64_t tokens) {
  AdvanceEnd(rows, tokens);
}

__global__ void SetVisibleKernel(MemoryRows* rows, int64_t begin, int64_t end, int64_t pinned) {
  rows->begin = begin;
  rows->end = end;
  rows->pinned = pinned;
}

__global__ void SetRowsKernel(MemoryRows* rows, MemoryRows content) {
  *rows = content;
}

cudaError_t IsCaptured(cudaStream_t stream, bool* captured) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(stream, &status);
  *captured = status != cudaStreamCaptureStatusNone;
  return error;
}

}  // namespace

std::string DeviceRows::Create(const RowsShape& shape, DeviceBudget* budget, std::unique_ptr<DeviceRows>* rows) {
  if (budget == nullptr) return "budget: expected a pointer, got NULL";
  if (rows == nullptr) return "rows: expected a pointer, got NULL";
  if (std::string wrong = CheckRowsShape(shape); !wrong.empty()) return wrong;
  const RowsLayout at = LayoutOf(shape);
  if (!budget->Take(at.bytes)) {
    return "budget: expected " + std::to_string(at.bytes) + " bytes of room, got " +
           std::to_string(budget->bytes() - budget->used());
  }
  // From here on the destructor gives the bytes back.
  std::unique_ptr<DeviceRows> made(new DeviceRows(shape, budget, at.bytes));
  cudaError_t error = cudaMalloc(reinterpret_cast<void**>(&made->memory_), static_cast<size_t>(at.bytes));
  if (error != cudaSuccess) {
    cudaGetLastError();
    made->memory_ = nullptr;
    return CudaErrorText("cudaMalloc", error);
  }
  made->staging_ = made->memory_ + at.staging;
  made->rows_ = reinterpret_cast<MemoryRows*>(made->memory_ + at.rows);
  MemoryRows content;
  content.keys = made->memory_ + at.keys;
  content.values = made->memory_ + at.values;
  if (shape.type == DType::kI8) {
    content.key_scales = reinterpret_cast<const float*>(made->memory_ + at.key_scales);
    content.value_scales = reinterpret_cast<const float*>(made->memory_ + at.value_scales);
  }
  content.capacity = shape.capacity;
  SetRowsKernel<<<1, 1, 0, cudaStreamPerThread>>>(made->rows_, content);
  error = cudaGetLastError();
  // Waits, so that work on any stream finds the rows in place.
  if (error == cudaSuccess) error = cudaStreamSynchronize(cudaStreamPerThread);
  if (error != cudaSuccess) return CudaErrorText("Create", error);
  *rows = std::move(made);
  return "";
}

DeviceRows::~DeviceRows() {
  if (memory_ != nullptr) cudaFree(memory_);
  budget_->Give(bytes_);
}

std::string DeviceRows::Queue(int64_t tokens, const RowsToAppend& source, bool values, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  AppendArgs args;
  args.source = source.data;
  args.source_type = source.type;
  args.row_stride = source.row_stride;
  args.head_stride = source.head_stride;
  args.heads = shape_.kv_heads;
  args.dim = values ? shape_.value_dim : shape_.key_dim;
  args.tokens = args.all_tokens = tokens;
  args.type = shape_.type;
  args.values = values;
  args.rows = rows_;
  const auto launch = [&] {
    const int64_t blocks = CeilDivide(args.tokens * args.heads, kAppendWarps);
    AppendKernel<<<static_cast<unsigned>(blocks), kAppendWarps * kLanes, 0, on>>>(args);
    return CudaErrorText("append", cudaGetLastError());
  };
  if (source.on_device) return launch();

  const auto each = static_cast<size_t>(ElementBytes(source.type));
  const auto row_bytes = static_cast<size_t>(args.dim) * each;
  const int64_t at_once = Greatest<int64_t>(1, kStagingBytes / (args.heads * static_cast<int64_t>(row_bytes)));
  for (int64_t first = 0; first < tokens; first += at_once) {
    args.tokens = Least(at_once, tokens - first);
    args.offset = first;
    for (int32_t h = 0; h < args.heads; ++h) {
      // Staged head by head: [heads, args.tokens, dim].
      const cudaError_t error =
          cudaMemcpy2DAsync(staging_ + static_cast<size_t>(h * args.tokens) * row_bytes, row_bytes,
                            static_cast<const char*>(source.data) +
                                static_cast<size_t>(first * source.row_stride + h * source.head_stride) * each,
                            static_cast<size_t>(source.row_stride) * each, row_bytes, static_cast<size_t>(args.tokens),
                            cudaMemcpyHostToDevice, on);
      if (error != cudaSuccess) return CudaErrorText("append", error);
    }
    args.source = staging_;
    args.row_stride = args.dim;
    args.head_stride = args.tokens * args.dim;
    if (std::string wrong = launch(); !wrong.empty()) return wrong;
  }
  return "";
}

std::string DeviceRows::Append(int64_t tokens, const RowsToAppend& keys, const RowsToAppend& values, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  bool captured = false;
  if (std::string wrong = CudaErrorText("append", IsCaptured(on, &captured)); !wrong.empty()) return wrong;
  if (std::string wrong = CheckAppend(shape_, size_, tokens, keys, values, captured); !wrong.empty()) return wrong;
  if (tokens == 0) return "";
  if (std::string wrong = Queue(tokens, keys, false, stream); !wrong.empty()) return wrong;
  if (std::string wrong = Queue(tokens, values, true, stream); !wrong.empty()) return wrong;
  AdvanceKernel<<<1, 1, 0, on>>>(rows_, tokens);
  if (std::string wrong = CudaErrorText("append", cudaGetLastError()); !wrong.empty()) return wrong;
  if (!captured) size_ += tokens;
  return "";
}

std::string DeviceRows::SetVisible(int64_t begin, int64_t end, int64_t pinned, void* stream) {
  if (end < 0 || end > shape_.capacity) {
    return "end: expected 0 to " + std::to_string(shape_.capacity) + ", got " + std::to_string(end);
  }
  if (begin < 0 || begin > end) {
    return "begin: expected 0 to end = " + std::to_string(end) + ", got " + std::to_string(begin);
  }
  if (pinned < 0) return "pinned: expected at least 0, got " + std::to_string(pinned);
  const auto on = static_cast<cudaStream_t>(stream);
  bool captured = false;
  if (std::string wrong = CudaErrorText("SetVisible", IsCaptured(on, &captured)); !wrong.empty()) return wrong;
  SetVisibleKernel<<<1, 1, 0, on>>>(rows_, begin, end, pinned);
  if (std::string wrong = CudaErrorText("SetVisible", cudaGetLastError()); !wrong.empty()) return wrong;
  if (!captured) size_ = end;
  return "";
}

}  // namespace mneme::cuda
