// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_ATTENTION_CUDA_EMULATED_ATTEND_H_
#define MNEME_TESTS_ATTENTION_CUDA_EMULATED_ATTEND_H_

#include <cstdint>
#include <vector>

#include "attention/cuda/finish-inl.h"
#include "attention/cuda/search-inl.h"
#include "tests/attention/cuda/attend_case.h"
#include "tests/attention/cuda/emulator.h"

namespace mneme::cuda {

// Attend as attend.cu does it, both kernels in the emulator.
template <int kSearchWarps, int kFinishWarps>
void EmulatedAttend(const AttendProblem& problem, const AttendPlan& plan, void* workspace_bytes, uint32_t seed) {
  if (problem.tokens == 0) return;
  const Workspace workspace = WorkspaceAt(plan, workspace_bytes);
  if (plan.ranges + plan.splits > 0) {
    ForInstance(problem, plan, [&](auto instance) {
      using Instance = decltype(instance);
      RunGrid<kSearchWarps>(
          int64_t{plan.column_tiles} * (plan.ranges + plan.splits), problem.kv_heads, problem.batch,
          plan.search_shared_bytes, seed, [&](EmulatedBlock<kSearchWarps>& block) {
            Search<typename Instance::Memory, typename Instance::Local, Instance::kDim, Instance::kColumnTiles>(
                block, problem, plan, workspace);
          });
    });
  }
  const int64_t shared = FinishSharedOf(plan.ranges, problem.top_k, kFinishWarps * kLanes).bytes;
  RunGrid<kFinishWarps>(problem.tokens * problem.q_heads, 1, 1, shared, seed + 1,
                        [&](EmulatedBlock<kFinishWarps>& block) { Finish(block, problem, plan, workspace); });
}

// The same with a workspace that begins with random bytes, as device memory may.
template <int kSearchWarps, int kFinishWarps>
void EmulatedAttend(const AttendProblem& problem, const AttendPlan& plan, uint32_t seed) {
  std::vector<uint64_t> bytes(static_cast<size_t>(plan.workspace_bytes + 7) / 8, 0x7FF0DEADBEEF7FF1u);
  EmulatedAttend<kSearchWarps, kFinishWarps>(problem, plan, bytes.data(), seed);
}

// Arrays stay where they are.
class HostPlace {
 public:
  template <typename T>
  const T* Input(const std::vector<T>& array) {
    return array.empty() ? nullptr : array.data();
  }
  const MemoryRows* Keep(std::vector<MemoryRows>&& rows) { return (rows_ = std::move(rows)).data(); }
  const MemoryRows* const* Keep(std::vector<const MemoryRows*>&& pointers) {
    return (pointers_ = std::move(pointers)).data();
  }
  template <typename T>
  T* Output(std::vector<T>& array) {
    return array.data();
  }

 private:
  std::vector<MemoryRows> rows_;
  std::vector<const MemoryRows*> pointers_;
};

}  // namespace mneme::cuda

#endif  // MNEME_TESTS_ATTENTION_CUDA_EMULATED_ATTEND_H_
