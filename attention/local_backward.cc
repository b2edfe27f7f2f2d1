// SPDX-License-Identifier: Apache-2.0
#include "attention/local_backward.h"

#include <algorithm>
#include <cstddef>

#include "attention/attend_kernels.h"
#include "base/scratch.h"

namespace mneme {
namespace {

// Query rows of a block, which share one conversion of a tile to f32 and whose weights stay in the cache.
constexpr int64_t kBlockRows = 64;

}  // namespace

int64_t LocalBackwardScratchFloats(const LocalKernelArgs& args) {
  const int64_t rows = args.block_queries * args.group;
  const auto side = [&](int64_t dim) {
    return rows * PaddedDim(dim) + PaddedDim(rows * kLocalTile) + kLocalTile * PaddedDim(dim);
  };
  return side(args.key_dim) + side(args.value_dim) + 2 * rows * PaddedDim(args.key_dim) + 2 * PaddedDim(rows) +
         PaddedDim(2 * args.block_queries);
}

void AttendLocalBackwardWith(const AttendKernels& kernels, const LocalProblem& problem, const LocalUpstream& upstream,
                             const LocalGradients& gradients) {
  LocalBackwardKernelArgs args = {
      .local = KernelArgsOf(problem, kBlockRows / problem.group),
      .log_sum_exp = upstream.log_sum_exp,
      .output_gradients = upstream.output_gradients,
      .offsets = upstream.offsets,
      .query_gradients = gradients.queries,
      .key_gradients = gradients.keys,
      .value_gradients = gradients.values,
      .scale_gradients = gradients.scales,
  };
  Scratch scratch;
  const auto floats = static_cast<size_t>(LocalBackwardScratchFloats(args.local));
  args.local.scratch = static_cast<float*>(scratch.allocate(floats * sizeof(float), 64));
  kernels.attend_local_backward(args);
}

void AttendLocalBackward(const LocalProblem& problem, const LocalUpstream& upstream, const LocalGradients& gradients) {
  AttendLocalBackwardWith(AttendKernelsFor(BestCpuTarget()), problem, upstream, gradients);
}

}  // namespace mneme
