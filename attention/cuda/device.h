// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_DEVICE_H_
#define MNEME_ATTENTION_CUDA_DEVICE_H_

#include <string>

namespace mneme::cuda {

// "off" in a build without CUDA; else the runtime's version and the devices that this process sees: "13.0 on NVIDIA
// H200", "13.0 without a device". Creates no context and leaves the current device as it is. Thread-safe.
std::string Describe();

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_DEVICE_H_
