// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_RANK_KEY_H_
#define MNEME_ATTENTION_CUDA_RANK_KEY_H_

#include "attention/cuda/host_device.h"

namespace mneme::cuda {

// A row's rank as one number: greater logits first, equal ones by the lower index. Upper half: the logit's bits,
// turned so that they order as the logit does; lower half: ~index. Keys of different rows differ, so the k greatest
// of a set are one set, whatever the order in which they were looked at.
inline constexpr uint64_t kNoRow = 0;  // below the key of every row

// `logit` is no NaN. -0 ranks as +0 does.
MNEME_HOST_DEVICE uint64_t RankKey(float logit, uint32_t index) {
  uint32_t bits = logit == 0.0f ? 0u : BitsOf(logit);
  bits = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(bits) << 32 | static_cast<uint32_t>(~index);
}

// Of a key that is not kNoRow.
MNEME_HOST_DEVICE float LogitOf(uint64_t key) {
  const auto bits = static_cast<uint32_t>(key >> 32);
  return FloatOf((bits & 0x80000000u) != 0 ? bits & 0x7FFFFFFFu : ~bits);
}

MNEME_HOST_DEVICE uint32_t IndexOf(uint64_t key) {
  return ~static_cast<uint32_t>(key);
}

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_RANK_KEY_H_
