// SPDX-License-Identifier: Apache-2.0
#include "attention/cuda/runtime.h"

namespace mneme::cuda {

int32_t DeviceCount() {
  return 0;
}

std::string OpenRuntime(int32_t, std::unique_ptr<Runtime>*) {
  return "this build has no CUDA";
}

}  // namespace mneme::cuda
