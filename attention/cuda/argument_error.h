// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_ARGUMENT_ERROR_H_
#define MNEME_ATTENTION_CUDA_ARGUMENT_ERROR_H_

#include <cstdint>
#include <string>

namespace mneme::cuda {

// The one form of messages about wrong arguments.
inline std::string ArgumentError(const std::string& name, const std::string& expected, const std::string& actual) {
  return name + ": expected " + expected + ", got " + actual;
}
inline std::string ArgumentError(const std::string& name, const std::string& expected, int64_t actual) {
  return ArgumentError(name, expected, std::to_string(actual));
}

// Whether there are kernels for rows of `dim` elements.
inline bool HasKernelsForDim(int32_t dim) {
  return dim == 64 || dim == 128 || dim == 256;
}

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_ARGUMENT_ERROR_H_
