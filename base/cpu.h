// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_CPU_H_
#define MNEME_BASE_CPU_H_

#include <cstdint>

#include "absl/strings/string_view.h"

namespace mneme {

// What a kernel's translation unit may be compiled for (docs/design/kernels.md). Each target includes those before it.
//   kPlain   what every CPU of the architecture has
//   kAvx2    AVX2, FMA, F16C
//   kAvx512  AVX-512 F, BW, VL, DQ; kernels that need more (VNNI) check for it themselves
enum class CpuTarget : uint8_t { kPlain = 0, kAvx2 = 1, kAvx512 = 2 };

inline constexpr int kCpuTargetCount = 3;

// Returns: "plain", "avx2" or "avx512".
absl::string_view CpuTargetName(CpuTarget target);

// Whether this processor and its operating system run code compiled for `target`.
bool CpuHas(CpuTarget target);

// Returns: the greatest target that CpuHas. A lower target's name in the environment variable MNEME_KERNELS lowers it;
// the variable is read in the first call. Thread-safe.
CpuTarget BestCpuTarget();

}  // namespace mneme

#endif  // MNEME_BASE_CPU_H_
