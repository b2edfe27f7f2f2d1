// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_CUDA_ERROR_H_
#define MNEME_ATTENTION_CUDA_CUDA_ERROR_H_

#include <string>

#include <cuda_runtime.h>

namespace mneme::cuda {

// "" or what CUDA says went wrong with `what`.
inline std::string Said(const char* what, cudaError_t error) {
  return error == cudaSuccess ? "" : std::string(what) + ": " + cudaGetErrorString(error);
}

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_CUDA_ERROR_H_
