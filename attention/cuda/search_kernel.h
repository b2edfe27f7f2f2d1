// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_SEARCH_KERNEL_H_
#define MNEME_ATTENTION_CUDA_SEARCH_KERNEL_H_

#include <cuda_runtime_api.h>

#include "attention/cuda/plan.h"
#include "attention/cuda/workspace.h"

// Internal: the instances of the search kernel, one translation unit for each type of queries (search_f16.cu …).
namespace mneme::cuda {

inline constexpr int kSearchWarps = 8;

// Returns: how many blocks of the problem's instance run on the current device at once.
cudaError_t SearchRoomF16(const AttendProblem& problem, const AttendPlan& plan, DeviceRoom* room);
cudaError_t SearchRoomBF16(const AttendProblem& problem, const AttendPlan& plan, DeviceRoom* room);

cudaError_t LaunchSearchF16(const AttendProblem& problem, const AttendPlan& plan, const Workspace& workspace,
                            cudaStream_t stream);
cudaError_t LaunchSearchBF16(const AttendProblem& problem, const AttendPlan& plan, const Workspace& workspace,
                             cudaStream_t stream);

// Allows the kernel more than 48 KiB of dynamic shared memory, which CUDA requires.
template <class Kernel>
cudaError_t AllowShared(Kernel* kernel, int32_t bytes) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                              bytes);
}

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_SEARCH_KERNEL_H_
