// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_FUSION_H_
#define MNEME_ATTENTION_FUSION_H_

#include <stdint.h>

namespace mneme {

// How attention over retrieved rows and over local rows become one output. The numbers equal mneme_fusion of the C ABI.
// Shared with CUDA sources.
enum class Fusion : uint8_t {
  kJoint = 0,       // one softmax over retrieved and local rows
  kGated = 1,       // sigmoid(gate) * memory + (1 - sigmoid(gate)) * local (Memorizing Transformers, Wu et al. 2022)
  kMemoryOnly = 2,  // retrieved rows alone
  kLocalOnly = 3,   // local rows alone
};

}  // namespace mneme

#endif  // MNEME_ATTENTION_FUSION_H_
