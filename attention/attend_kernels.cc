// SPDX-License-Identifier: Apache-2.0
#include "attention/attend_kernels.h"

namespace mneme {

const AttendKernels& AttendKernelsFor(CpuTarget target) {
  switch (target) {
#if defined(__x86_64__)
    case CpuTarget::kAvx2: return kAvx2AttendKernels;
    case CpuTarget::kAvx512: return kAvx512AttendKernels;
#endif
    default: return kPlainAttendKernels;
  }
}

}  // namespace mneme
