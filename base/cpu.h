// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_CPU_H_
#define MNEME_BASE_CPU_H_

#include <cstdint>

#include "absl/strings/string_view.h"

namespace mneme {

// What a kernel's translation unit may be compiled for. Each includes those before it.
//   kPlain   the architecture's baseline
//   kAvx2    AVX2, FMA, F16C
//   kAvx512  AVX-512 F, BW, VL, DQ; kernels that need more (VNNI, BF16) ask for it themselves
enum class CpuTarget : uint8_t { kPlain = 0, kAvx2 = 1, kAvx512 = 2 };

inline constexpr int kCpuTargetCount = 3;

// "plain", "avx2", "avx512".
absl::string_view CpuTargetName(CpuTarget target);

// True if this processor and its operating system run code compiled for `target`.
bool CpuHas(CpuTarget target);

// The greatest target that CpuHas. The environment variable MNEME_KERNELS, holding a target's name, lowers it;
// it is read once, at the first call. Thread-safe.
CpuTarget BestCpuTarget();

}  // namespace mneme

#endif  // MNEME_BASE_CPU_H_
