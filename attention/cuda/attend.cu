// SPDX-License-Identifier: Apache-2.0
#include "attention/cuda/attend.h"

#include <cuda_runtime.h>

#include "attention/cuda/cuda_error.h"
#include "attention/cuda/device_block.cuh"
#include "attention/cuda/finish-inl.h"
#include "attention/cuda/search_kernel.h"

namespace mneme::cuda {
namespace {

constexpr int kFinishWarps = 4;

__global__ void __launch_bounds__(kFinishWarps* kLanes)
    FinishKernel(const __grid_constant__ AttendProblem problem, const __grid_constant__ AttendPlan plan,
                 const __grid_constant__ Workspace workspace) {
  DeviceBlock<kFinishWarps> block;
  Finish(block, problem, plan, workspace);
}

}  // namespace

std::string Prepare(const AttendProblem& problem, const AttendBounds& bounds, AttendPlan* plan) {
  if (plan == nullptr) return "plan: expected a pointer, got NULL";
  if (std::string wrong = CheckProblem(problem, bounds); !wrong.empty()) return wrong;
  // The kernel instance and its shared memory do not depend on the number of blocks; only the size of pieces does.
  const AttendPlan draft = PlanAttend(problem, bounds, DeviceRoom{}, kSearchWarps);
  DeviceRoom room;
  const cudaError_t error =
      problem.type == DType::kF16 ? SearchRoomF16(problem, draft, &room) : SearchRoomBF16(problem, draft, &room);
  if (error != cudaSuccess) return CudaErrorText("Prepare", error);
  *plan = PlanAttend(problem, bounds, room, kSearchWarps);
  return "";
}

std::string Attend(const AttendProblem& problem, const AttendPlan& plan, void* workspace, void* stream) {
  if (std::string wrong = CheckProblem(problem, AttendBounds{}); !wrong.empty()) return wrong;
  if (plan.workspace_bytes > 0 && workspace == nullptr) {
    return "workspace: expected " + std::to_string(plan.workspace_bytes) + " bytes of device memory, got NULL";
  }
  if (problem.tokens == 0) return "";
  const auto on = static_cast<cudaStream_t>(stream);
  const Workspace at = WorkspaceAt(plan, workspace);
  cudaError_t error = cudaSuccess;
  if (plan.ranges + plan.splits > 0) {
    error =
        problem.type == DType::kF16 ? LaunchSearchF16(problem, plan, at, on) : LaunchSearchBF16(problem, plan, at, on);
    if (error != cudaSuccess) return CudaErrorText("search", error);
  }
  const auto shared = static_cast<int32_t>(FinishSharedOf(plan.ranges, problem.top_k, kFinishWarps * kLanes).bytes);
  error = AllowShared(FinishKernel, shared);
  if (error != cudaSuccess) return CudaErrorText("finish", error);
  FinishKernel<<<static_cast<unsigned>(problem.tokens * problem.q_heads), kFinishWarps * kLanes,
                 static_cast<size_t>(shared), on>>>(problem, plan, at);
  return CudaErrorText("finish", cudaGetLastError());
}

}  // namespace mneme::cuda
