// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_SEARCH_KERNEL_INL_CUH_
#define MNEME_ATTENTION_CUDA_SEARCH_KERNEL_INL_CUH_

#include <cuda_runtime.h>

#include "attention/cuda/device_block.cuh"
#include "attention/cuda/search-inl.h"
#include "attention/cuda/search_kernel.h"

namespace mneme::cuda {

template <class Instance>
__global__ void __launch_bounds__(kSearchWarps* kLanes)
    SearchKernel(const __grid_constant__ AttendProblem problem, const __grid_constant__ AttendPlan plan,
                 const __grid_constant__ Workspace workspace) {
  DeviceBlock<kSearchWarps> block;
  Search<typename Instance::Memory, typename Instance::Local, Instance::kDim, Instance::kColumnTiles>(block, problem,
                                                                                                      plan, workspace);
}

template <class Local>
cudaError_t SearchRoom(const AttendProblem& problem, const AttendPlan& plan, DeviceRoom* room) {
  int device = 0, multiprocessors = 0, each = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  ForInstanceOf<Local>(problem, plan, [&](auto instance) {
    using Instance = decltype(instance);
    error = AllowShared(SearchKernel<Instance>, plan.search_shared_bytes);
    if (error != cudaSuccess) return;
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, SearchKernel<Instance>, kSearchWarps * kLanes,
                                                          static_cast<size_t>(plan.search_shared_bytes));
  });
  if (error != cudaSuccess) return error;
  room->blocks = int64_t{multiprocessors} * each;
  return each == 0 ? cudaErrorLaunchOutOfResources : cudaSuccess;
}

template <class Local>
cudaError_t LaunchSearch(const AttendProblem& problem, const AttendPlan& plan, const Workspace& workspace,
                         cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  ForInstanceOf<Local>(problem, plan, [&](auto instance) {
    using Instance = decltype(instance);
    error = AllowShared(SearchKernel<Instance>, plan.search_shared_bytes);
    if (error != cudaSuccess) return;
    const dim3 grid(static_cast<unsigned>(plan.column_tiles) * static_cast<unsigned>(plan.ranges + plan.splits),
                    static_cast<unsigned>(problem.kv_heads), static_cast<unsigned>(problem.batch));
    SearchKernel<Instance><<<grid, kSearchWarps * kLanes, static_cast<size_t>(plan.search_shared_bytes), stream>>>(
        problem, plan, workspace);
    error = cudaGetLastError();
  });
  return error;
}

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_SEARCH_KERNEL_INL_CUH_
