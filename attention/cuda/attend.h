// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_ATTEND_H_
#define MNEME_ATTENTION_CUDA_ATTEND_H_

#include <cstddef>
#include <string>

#include "attention/cuda/plan.h"

namespace mneme::cuda {

// Attention over the k best rows of each sequence's memory and over its local rows, in two launches on the device. The
// first searches the memories and attends to the local rows; the second ranks, gathers, applies softmax and fuses.
// Plain C++: needs no CUDA header.
//
// Errors are text, "" for success: the name of a wrong argument with what was expected and what was given, or the
// message of the CUDA runtime. Both functions use the calling thread's current device. Thread-safe.

// Makes a plan for problems of this shape on the current device. It stays valid while tokens, batch, heads, dims,
// types, top_k and the presence of local rows stay the same; everything else in the problem may change.
std::string Prepare(const AttendProblem& problem, const AttendBounds& bounds, AttendPlan* plan);

// Queues the work on `stream` (a cudaStream_t) and returns. It allocates nothing, waits for nothing and uses no other
// stream. It may be captured into a graph, whose replays read lengths, rows and queries again.
// workspace: plan.workspace_bytes of device memory, aligned to 256 bytes, in use until the stream has done this work.
std::string Attend(const AttendProblem& problem, const AttendPlan& plan, void* workspace, void* stream);

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_ATTEND_H_
