// SPDX-License-Identifier: Apache-2.0
#include "attention/cuda/search_kernel-inl.cuh"

namespace mneme::cuda {

cudaError_t SearchRoomBF16(const AttendProblem& problem, const AttendPlan& plan, DeviceRoom* room) {
  return SearchRoom<BF16Rows>(problem, plan, room);
}

cudaError_t LaunchSearchBF16(const AttendProblem& problem, const AttendPlan& plan, const Workspace& workspace,
                             cudaStream_t stream) {
  return LaunchSearch<BF16Rows>(problem, plan, workspace, stream);
}

}  // namespace mneme::cuda
