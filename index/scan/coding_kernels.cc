// SPDX-License-Identifier: Apache-2.0
// Chooses the kernels that make codes.

#include "base/cpu.h"
#include "index/scan/coding_kernel.h"

namespace mneme::codes {

const CodingKernels& BestCodingKernels() {
#if defined(__x86_64__)
  if (BestCpuTarget() >= CpuTarget::kAvx512) return kAvx512CodingKernels;
  if (BestCpuTarget() >= CpuTarget::kAvx2) return kAvx2CodingKernels;
#endif
  return kPlainCodingKernels;
}

}  // namespace mneme::codes
