// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_LOCAL_MASK_H_
#define MNEME_ATTENTION_LOCAL_MASK_H_

#include <stdint.h>

namespace mneme {

// Which local rows a query sees: LocalMask in attention/local.h has the definitions. The numbers equal mneme_local_mask
// of the C ABI. Shared with CUDA sources.
enum class LocalMaskKind : uint8_t { kCausal = 0, kSlidingWindow = 1, kNone = 2, kBits = 3 };

}  // namespace mneme

#endif  // MNEME_ATTENTION_LOCAL_MASK_H_
