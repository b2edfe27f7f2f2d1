// SPDX-License-Identifier: Apache-2.0
#include "attention/cuda/search_kernel-inl.cuh"

namespace mneme::cuda {

cudaError_t SearchRoomF16(const AttendProblem& problem, const AttendPlan& plan, DeviceRoom* room) {
  return SearchRoom<F16Rows>(problem, plan, room);
}

cudaError_t LaunchSearchF16(const AttendProblem& problem, const AttendPlan& plan, const Workspace& workspace,
                            cudaStream_t stream) {
  return LaunchSearch<F16Rows>(problem, plan, workspace, stream);
}

}  // namespace mneme::cuda
