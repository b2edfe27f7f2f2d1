// SPDX-License-Identifier: Apache-2.0
#include "attention/cuda/device.h"

#include <cuda_runtime.h>

namespace mneme::cuda {

std::string Describe() {
  int version = 0, devices = 0;
  cudaRuntimeGetVersion(&version);
  std::string text = std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  cudaDeviceProp first;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0 ||
      cudaGetDeviceProperties(&first, 0) != cudaSuccess) {
    cudaGetLastError();  // ours, not one for the host to find
    return text + " without a device";
  }
  text += std::string(" on ") + first.name;
  return devices == 1 ? text : text + " and " + std::to_string(devices - 1) + " more";
}

}  // namespace mneme::cuda
