// SPDX-License-Identifier: Apache-2.0
#include "attention/cuda/runtime.h"

#include <cuda_runtime.h>

#include "attention/cuda/argument_error.h"
#include "attention/cuda/attend.h"
#include "attention/cuda/cuda_error.h"

namespace mneme::cuda {
namespace {

cudaStream_t StreamOf(void* stream) {
  return static_cast<cudaStream_t>(stream);
}
cudaEvent_t EventOf(void* event) {
  return static_cast<cudaEvent_t>(event);
}

// While it lives, `device` is the thread's current device, and CUDA allows calls that do not belong to a capture: the
// host may be capturing a stream meanwhile, which these calls must not invalidate.
class CurrentDeviceScope {
 public:
  explicit CurrentDeviceScope(int device) {
    if (cudaGetDevice(&before_) != cudaSuccess) before_ = device;
    if (before_ != device) cudaSetDevice(device);
    device_ = device;
    cudaThreadExchangeStreamCaptureMode(&mode_);
  }
  ~CurrentDeviceScope() {
    cudaThreadExchangeStreamCaptureMode(&mode_);
    if (before_ != device_) cudaSetDevice(before_);
  }
  CurrentDeviceScope(const CurrentDeviceScope&) = delete;
  CurrentDeviceScope& operator=(const CurrentDeviceScope&) = delete;

 private:
  int before_ = 0, device_ = 0;
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Clears CUDA's last error, so that the host does not find an error that mneme has reported.
std::string TakeCudaError(const char* what, cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return CudaErrorText(what, error);
}

class CudaRuntime final : public Runtime {
 public:
  explicit CudaRuntime(int device) : device_(device) {}

  std::string NewStream(void** stream) override {
    const CurrentDeviceScope current(device_);
    cudaStream_t made = nullptr;
    const cudaError_t error = cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking);
    *stream = made;
    return TakeCudaError("cudaStreamCreate", error);
  }
  void DeleteStream(void* stream) override {
    const CurrentDeviceScope current(device_);
    cudaStreamDestroy(StreamOf(stream));
  }
  std::string NewEvent(void** event) override {
    const CurrentDeviceScope current(device_);
    cudaEvent_t made = nullptr;
    const cudaError_t error = cudaEventCreateWithFlags(&made, cudaEventDisableTiming);
    *event = made;
    return TakeCudaError("cudaEventCreate", error);
  }
  void DeleteEvent(void* event) override {
    const CurrentDeviceScope current(device_);
    cudaEventDestroy(EventOf(event));
  }
  std::string Record(void* event, void* stream) override {
    const CurrentDeviceScope current(device_);
    return TakeCudaError("cudaEventRecord", cudaEventRecord(EventOf(event), StreamOf(stream)));
  }
  std::string Wait(void* stream, void* event) override {
    const CurrentDeviceScope current(device_);
    return TakeCudaError("cudaStreamWaitEvent", cudaStreamWaitEvent(StreamOf(stream), EventOf(event), 0));
  }
  std::string Synchronise(void* event) override {
    const CurrentDeviceScope current(device_);
    return TakeCudaError("cudaEventSynchronize", cudaEventSynchronize(EventOf(event)));
  }
  bool Done(void* event) override {
    const CurrentDeviceScope current(device_);
    const cudaError_t error = cudaEventQuery(EventOf(event));
    if (error == cudaErrorNotReady) cudaGetLastError();
    return error == cudaSuccess;
  }
  std::string IsCaptured(void* stream, bool* captured) override {
    const CurrentDeviceScope current(device_);
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    const cudaError_t error = cudaStreamIsCapturing(StreamOf(stream), &status);
    *captured = status != cudaStreamCaptureStatusNone;
    return TakeCudaError("cudaStreamIsCapturing", error);
  }

  std::string Allocate(int64_t bytes, void* stream, void** data) override {
    const CurrentDeviceScope current(device_);
    *data = nullptr;
    return TakeCudaError("cudaMallocAsync", cudaMallocAsync(data, static_cast<size_t>(bytes), StreamOf(stream)));
  }
  void Free(void* data, void* stream) override {
    const CurrentDeviceScope current(device_);
    cudaFreeAsync(data, StreamOf(stream));
  }
  std::string AllocateHost(int64_t bytes, void** data) override {
    const CurrentDeviceScope current(device_);
    *data = nullptr;
    return TakeCudaError("cudaMallocHost", cudaMallocHost(data, static_cast<size_t>(bytes)));
  }
  void FreeHost(void* data) override {
    const CurrentDeviceScope current(device_);
    cudaFreeHost(data);  // waits for the device's work that uses it
  }

  std::string Copy(const CopyShape& shape, void* stream) override {
    if (shape.bytes == 0 || shape.rows == 0) return "";
    const CurrentDeviceScope current(device_);
    // CUDA tells by the addresses which side is the host's.
    if (shape.rows == 1) {
      return TakeCudaError("cudaMemcpyAsync", cudaMemcpyAsync(shape.to, shape.from, static_cast<size_t>(shape.bytes),
                                                              cudaMemcpyDefault, StreamOf(stream)));
    }
    return TakeCudaError("cudaMemcpy2DAsync",
                         cudaMemcpy2DAsync(shape.to, static_cast<size_t>(shape.to_pitch), shape.from,
                                           static_cast<size_t>(shape.from_pitch), static_cast<size_t>(shape.bytes),
                                           static_cast<size_t>(shape.rows), cudaMemcpyDefault, StreamOf(stream)));
  }
  std::string Prepare(const AttendProblem& problem, const AttendBounds& bounds, AttendPlan* plan) override {
    const CurrentDeviceScope current(device_);
    return cuda::Prepare(problem, bounds, plan);
  }
  std::string Attend(const AttendProblem& problem, const AttendPlan& plan, void* workspace, void* stream) override {
    const CurrentDeviceScope current(device_);
    return cuda::Attend(problem, plan, workspace, stream);
  }

 private:
  const int device_;
};

}  // namespace

int32_t DeviceCount() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) == cudaSuccess) return devices;
  cudaGetLastError();  // clears the error, so that the host does not find it
  return 0;
}

std::string OpenRuntime(int32_t ordinal, std::unique_ptr<Runtime>* runtime) {
  if (runtime == nullptr) return "runtime: expected a pointer, got NULL";
  const int32_t devices = DeviceCount();
  if (devices == 0) return "there is no CUDA device";
  if (ordinal < 0 || ordinal >= devices) {
    return ArgumentError("ordinal", "0 to " + std::to_string(devices - 1), int64_t{ordinal});
  }
  const CurrentDeviceScope current(ordinal);
  int pools = 0, major = 0;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, ordinal);
  if (error != cudaSuccess) return TakeCudaError("cudaDeviceGetAttribute", error);
  if (major < 8) return ArgumentError("device", "compute capability 8.0 or newer", int64_t{major});
  if (pools == 0) return "device: expected memory pools (cudaMallocAsync), got a driver without them";
  *runtime = std::make_unique<CudaRuntime>(ordinal);
  return "";
}

}  // namespace mneme::cuda
