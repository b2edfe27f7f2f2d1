// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_ATTENTION_CUDA_EMULATED_APPEND_H_
#define MNEME_TESTS_ATTENTION_CUDA_EMULATED_APPEND_H_

#include <cstdint>

#include "attention/cuda/append-inl.h"

namespace mneme::cuda {

// AppendRows in the emulator, on rows in host memory. In a source of its own: where nvcc compiles, the bodies are the
// device's.
void EmulatedAppend(const AppendArgs& args, uint32_t seed);

}  // namespace mneme::cuda

#endif  // MNEME_TESTS_ATTENTION_CUDA_EMULATED_APPEND_H_
