// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_DEVICE_FUSED_PROBLEM_H_
#define MNEME_MEMORY_DEVICE_FUSED_PROBLEM_H_

#include <cstdint>
#include <string>

#include "memory/attend/memory_view.h"
#include "memory/attend/request.h"
#include "memory/device/device_tray.h"
#include "memory/device/mirror.h"

namespace mneme {

// The whole of Attend as the two launches take it: search, local attention and fusion of a request whose tensors lie on
// one device.

// Whether the request has local rows, and the most rows that a head retrieves; 0: none has a memory.
bool HasLocalRows(const AttendRequest& request);
int64_t GreatestTopK(const AttendRequest& request);

// What of the request, but for its memories, the kernels do not know: the argument's name, what they expect and what
// came; "" if they know all of it.
std::string UnknownToKernels(const AttendRequest& request);

// For a request that they know. Its pointers to small arrays are for FusedInputs to fill.
cuda::AttendProblem FusedProblemOf(const AttendRequest& request, DType stored);

// The small arrays of such a problem in a tray: what its heads do, whose queries and local rows are whose, and what
// each sequence sees of its memory.
class FusedInputs {
 public:
  // Before Lay.
  FusedInputs(const AttendRequest& request, const cuda::AttendProblem& problem, DeviceTray& tray);
  // After Lay: all but what each sequence sees, and the problem's pointers.
  void Fill(const AttendRequest& request, const DeviceTray& tray, cuda::AttendProblem& problem) const;
  // Sequence `number` has the local rows of `sequence`, and sees `view` of a memory that ends for it at token
  // `memory_end`. Positions are asked of `retrieve`.
  void See(const RetrieveRequest& retrieve, const Sequence& sequence, size_t number, int64_t memory_end,
           const MemoryMirror::View& view, const DeviceTray& tray) const;

 private:
  const bool has_local_;
  DeviceTray::Place<cuda::MemoryRows> rows_;
  DeviceTray::Place<const cuda::MemoryRows*> memories_;
  DeviceTray::Place<int64_t> query_offsets_, local_offsets_;
  DeviceTray::Place<float> gate_;
  RankingTray ranking_;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_DEVICE_FUSED_PROBLEM_H_
