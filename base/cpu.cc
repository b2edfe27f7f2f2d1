// SPDX-License-Identifier: Apache-2.0
#include "base/cpu.h"

#include <cstdlib>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace mneme {
namespace {

#if defined(__x86_64__)
// Clang 14's __builtin_cpu_supports does not know "f16c".
bool HasF16C() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx >> 29 & 1u) != 0;
}
#endif

CpuTarget ReadBestCpuTarget() {
  CpuTarget best = CpuTarget::kPlain;
  for (const CpuTarget target : {CpuTarget::kAvx2, CpuTarget::kAvx512}) {
    if (CpuHas(target)) best = target;
  }
  const char* wish = std::getenv("MNEME_KERNELS");
  if (wish == nullptr) return best;
  for (int i = 0; i < static_cast<int>(best); ++i) {
    if (CpuTargetName(static_cast<CpuTarget>(i)) == wish) return static_cast<CpuTarget>(i);
  }
  return best;
}

}  // namespace

absl::string_view CpuTargetName(CpuTarget target) {
  switch (target) {
    case CpuTarget::kPlain: return "plain";
    case CpuTarget::kAvx2: return "avx2";
    case CpuTarget::kAvx512: return "avx512";
  }
  return "unknown";
}

bool CpuHas(CpuTarget target) {
  if (target == CpuTarget::kPlain) return true;
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 && HasF16C();
  if (target == CpuTarget::kAvx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
         __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512dq") != 0;
#else
  return false;
#endif
}

CpuTarget BestCpuTarget() {
  static const CpuTarget best = ReadBestCpuTarget();
  return best;
}

}  // namespace mneme
