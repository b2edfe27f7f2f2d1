// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_DEVICE_H_
#define MNEME_ATTENTION_CUDA_DEVICE_H_

#include <string>

namespace mneme::cuda {

// Returns: "off" in a build without CUDA; else the runtime's version and the devices that this process sees, like "13.0
// on NVIDIA H200" or "13.0 without a device". Creates no context and does not change the current device. Thread-safe.
std::string Describe();

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_DEVICE_H_
