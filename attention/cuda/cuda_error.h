// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_CUDA_ERROR_H_
#define MNEME_ATTENTION_CUDA_CUDA_ERROR_H_

#include <string>

#include <cuda_runtime.h>

namespace mneme::cuda {

// Returns: "" for success, else `what` with CUDA's message.
inline std::string CudaErrorText(const char* what, cudaError_t error) {
  return error == cudaSuccess ? "" : std::string(what) + ": " + cudaGetErrorString(error);
}

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_CUDA_ERROR_H_
