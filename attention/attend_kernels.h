// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_ATTEND_KERNELS_H_
#define MNEME_ATTENTION_ATTEND_KERNELS_H_

#include <cstdint>

#include "attention/attend_kernel.h"
#include "attention/local.h"
#include "attention/local_backward.h"
#include "base/cpu.h"

// Internal to attention/ and its tests: chooses kernels, and runs those of any CPU target.

namespace mneme {

// Requires: CpuHas(target).
const AttendKernels& AttendKernelsFor(CpuTarget target);

// How many floats of scratch memory kernels need for `args`, whose `scratch` is not read.
int64_t LocalScratchFloats(const LocalKernelArgs& args);

// Returns: `problem` as plain data, without scratch and outputs. block_queries: queries taken together.
LocalKernelArgs KernelArgsOf(const LocalProblem& problem, int64_t block_queries);

// The same for args.local of the backward pass.
int64_t LocalBackwardScratchFloats(const LocalKernelArgs& args);

// AttendLocalBackward with the given kernels.
void AttendLocalBackwardWith(const AttendKernels& kernels, const LocalProblem& problem, const LocalUpstream& upstream,
                             const LocalGradients& gradients);

// AttendLocal and AttendRetrieved with the given kernels. block_queries: queries taken together; 0: as AttendLocal
// chooses.
void AttendLocalWith(const AttendKernels& kernels, const LocalProblem& problem, int64_t block_queries, float* output,
                     float* log_sum_exp);
float AttendRetrievedWith(const AttendKernels& kernels, const float* logits, const void* const* value_rows,
                          int64_t count, DType dtype, int64_t value_dim, float* output);

}  // namespace mneme

#endif  // MNEME_ATTENTION_ATTEND_KERNELS_H_
