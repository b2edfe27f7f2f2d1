// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_WORKSPACE_H_
#define MNEME_ATTENTION_CUDA_WORKSPACE_H_

#include "attention/cuda/plan.h"

namespace mneme::cuda {

// The results of the search for the second kernel, in the caller's workspace (AttendPlan).
struct Workspace {
  uint64_t* candidates;  // [tokens, q_heads, ranges, top_k] rank keys in any order, filled up with kNoRow
  float* local_outputs;  // [tokens, q_heads, splits, value_dim]
  float* local_sums;     // [tokens, q_heads, splits] log-sum-exps
};

MNEME_HOST_DEVICE Workspace WorkspaceAt(const AttendPlan& plan, void* data) {
  char* const bytes = static_cast<char*>(data);
  return {reinterpret_cast<uint64_t*>(bytes), reinterpret_cast<float*>(bytes + plan.local_outputs_at),
          reinterpret_cast<float*>(bytes + plan.local_sums_at)};
}

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_WORKSPACE_H_
