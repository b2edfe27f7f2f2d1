// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_ATTEND_H_
#define MNEME_ATTENTION_CUDA_ATTEND_H_

#include <cstddef>
#include <string>

#include "attention/cuda/plan.h"

namespace mneme::cuda {

// Attention over the k best rows of each sequence's memory and over its local rows, in two launches on the device:
// search (with the local rows beside it) and ranking, gathering, softmax and fusion. Plain C++: needs no CUDA header.
//
// Errors are text, "" for success: a wrong argument by name, what was expected and what came; or what the CUDA runtime
// said. Both calls concern the calling thread's current device and may run in any number of threads.

// A plan for problems of this shape on the current device. It stays good while tokens, batch, heads, dims, types, top_k
// and the presence of local rows stay the same; everything else of the problem may change.
std::string Prepare(const AttendProblem& problem, const AttendBounds& bounds, AttendPlan* plan);

// Queues the work on `stream` (a cudaStream_t) and returns. `workspace`: plan.workspace_bytes of device memory, aligned
// to 256 bytes, free again when the stream has done this work. Allocates nothing, waits for nothing, uses no other
// stream; may be captured into a graph, whose replays read lengths, rows and queries anew.
std::string Attend(const AttendProblem& problem, const AttendPlan& plan, void* workspace, void* stream);

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_ATTEND_H_
