// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_ATTENTION_CUDA_DEVICE_PLACE_H_
#define MNEME_TESTS_ATTENTION_CUDA_DEVICE_PLACE_H_

#include <cuda_runtime_api.h>

#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "attention/cuda/problem.h"

namespace mneme::cuda {

inline void Check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}
inline void Check(const std::string& error) {
  if (!error.empty()) throw std::runtime_error(error);
}

// Copies arrays to the device, each to an allocation of its own, which the destructor frees.
class DevicePlace {
 public:
  DevicePlace() = default;
  DevicePlace(const DevicePlace&) = delete;
  DevicePlace& operator=(const DevicePlace&) = delete;
  ~DevicePlace() {
    for (void* data : allocated_) cudaFree(data);
  }

  void* Allocate(size_t bytes) {
    void* data = nullptr;
    Check(cudaMalloc(&data, bytes == 0 ? 1 : bytes), "cudaMalloc");
    allocated_.push_back(data);
    return data;
  }

  template <typename T>
  const T* Input(const std::vector<T>& array) {
    return array.empty() ? nullptr : Upload(array);
  }
  const MemoryRows* Keep(std::vector<MemoryRows>&& rows) { return Upload(rows); }
  const MemoryRows* const* Keep(std::vector<const MemoryRows*>&& pointers) { return Upload(pointers); }
  template <typename T>
  T* Output(std::vector<T>& array) {
    T* const data = Upload(array);
    outputs_.push_back([&array, data] {
      Check(cudaMemcpy(array.data(), data, array.size() * sizeof(T), cudaMemcpyDeviceToHost), "output");
    });
    return data;
  }

  // Copies the outputs to where Output was given a place. Requires: the work is done.
  void Fetch() {
    for (const auto& fetch : outputs_) fetch();
  }

 private:
  template <typename T>
  T* Upload(const std::vector<T>& array) {
    T* const data = static_cast<T*>(Allocate(array.size() * sizeof(T)));
    Check(cudaMemcpy(data, array.data(), array.size() * sizeof(T), cudaMemcpyHostToDevice), "input");
    return data;
  }

  std::vector<void*> allocated_;
  std::vector<std::function<void()>> outputs_;
};

class Stream {
 public:
  Stream() { Check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream"); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }
  void Wait() const { Check(cudaStreamSynchronize(stream_), "wait"); }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace mneme::cuda

#endif  // MNEME_TESTS_ATTENTION_CUDA_DEVICE_PLACE_H_
