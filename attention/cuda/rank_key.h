// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_RANK_KEY_H_
#define MNEME_ATTENTION_CUDA_RANK_KEY_H_

#include "attention/cuda/host_device.h"

namespace mneme::cuda {

// A row's rank as one number, greater for better rows: by the greater logit, then the lower index. The upper half holds
// the logit's bits, changed so that they compare as the logits do; the lower half holds ~index. Keys of different rows
// differ, so the k greatest keys of a set do not depend on the order in which the set is read.
inline constexpr uint64_t kNoRow = 0;  // below the key of every row

// -0 ranks like 0. Requires: `logit` is not NaN.
MNEME_HOST_DEVICE uint64_t RankKey(float logit, uint32_t index) {
  uint32_t bits = logit == 0.0f ? 0u : BitsOf(logit);
  bits = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(bits) << 32 | static_cast<uint32_t>(~index);
}

// Requires: `key` is not kNoRow.
MNEME_HOST_DEVICE float LogitOf(uint64_t key) {
  const auto bits = static_cast<uint32_t>(key >> 32);
  return FloatOf((bits & 0x80000000u) != 0 ? bits & 0x7FFFFFFFu : ~bits);
}

MNEME_HOST_DEVICE uint32_t IndexOf(uint64_t key) {
  return ~static_cast<uint32_t>(key);
}

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_RANK_KEY_H_
