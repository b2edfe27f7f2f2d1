// SPDX-License-Identifier: Apache-2.0
// The engine's enums have the numbers of the ABI's, so that the ABI may convert them by a cast.

#include "attention/fusion.h"
#include "attention/local_mask.h"
#include "base/dtype_enum.h"

#include "mneme.h"

namespace mneme::capi {

template <typename Enum>
constexpr bool Equal(Enum own, int abi) {
  return static_cast<int>(own) == abi;
}

// mneme_dtype has 0 for the default, so DTypeOf and NumberOf convert it (tensors.h).
static_assert(Equal(DType::kF32, MNEME_DTYPE_F32 - 1) && Equal(DType::kF16, MNEME_DTYPE_F16 - 1) &&
              Equal(DType::kBF16, MNEME_DTYPE_BF16 - 1) && Equal(DType::kI8, MNEME_DTYPE_I8 - 1));
static_assert(Equal(Fusion::kJoint, MNEME_FUSION_JOINT) && Equal(Fusion::kGated, MNEME_FUSION_GATED) &&
              Equal(Fusion::kMemoryOnly, MNEME_FUSION_MEMORY_ONLY) &&
              Equal(Fusion::kLocalOnly, MNEME_FUSION_LOCAL_ONLY));
static_assert(Equal(LocalMaskKind::kCausal, MNEME_MASK_CAUSAL) &&
              Equal(LocalMaskKind::kSlidingWindow, MNEME_MASK_SLIDING_WINDOW) &&
              Equal(LocalMaskKind::kNone, MNEME_MASK_NONE) && Equal(LocalMaskKind::kBits, MNEME_MASK_BITS));

}  // namespace mneme::capi
