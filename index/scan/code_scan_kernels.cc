// SPDX-License-Identifier: Apache-2.0
// Chooses the code-scan kernels.

#include <atomic>
#include <cstring>

#include "base/cpu.h"
#include "index/scan/code_scan_kernel.h"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace mneme::codes {
namespace {

std::atomic<const Kernels*> kernels_for_testing{nullptr};

const Kernels& BestKernels() {
  if (BestCpuTarget() >= CpuTarget::kAvx512) {
    if (const Kernels* found = FindKernels("avx512vnni")) return *found;
  }
  if (BestCpuTarget() >= CpuTarget::kAvx2) {
    if (const Kernels* found = FindKernels("avx2")) return *found;
  }
  if (const Kernels* found = FindKernels("neon")) return *found;
  return kPlainKernels;
}

}  // namespace

const Kernels& CurrentKernels() {
  const Kernels* wanted = kernels_for_testing.load(std::memory_order_relaxed);
  if (wanted != nullptr) return *wanted;
  static const Kernels& best = BestKernels();
  return best;
}

const Kernels* FindKernels(const char* name) {
  const auto is = [&](const Kernels& kernels) { return std::strcmp(name, kernels.name) == 0; };
  if (is(kPlainKernels)) return &kPlainKernels;
#if defined(__x86_64__)
  if (is(kAvx2Kernels) && CpuHas(CpuTarget::kAvx2)) return &kAvx2Kernels;
  if (is(kAvx512VnniKernels) && CpuHas(CpuTarget::kAvx512) && __builtin_cpu_supports("avx512vnni") != 0) {
    return &kAvx512VnniKernels;
  }
#endif
#if defined(__aarch64__) && defined(__linux__)
  if (is(kNeonKernels) && (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0) return &kNeonKernels;
#endif
  return nullptr;
}

void UseKernelsForTesting(const Kernels* kernels) {
  kernels_for_testing.store(kernels);
}

}  // namespace mneme::codes
