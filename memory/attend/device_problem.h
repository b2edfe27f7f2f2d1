// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_DEVICE_PROBLEM_H_
#define MNEME_MEMORY_ATTEND_DEVICE_PROBLEM_H_

#include <cstdint>

#include "attention/cuda/problem.h"
#include "memory/attend/request.h"
#include "memory/device/argument_buffer.h"
#include "memory/device/mirror.h"

namespace mneme {

// Requests as the kernels take them: a cuda::AttendProblem, whose small arrays lie in an ArgumentBuffer. The
// constructors below add their arrays to the buffer. Fill and SetSequence write them, after the buffer got its bytes
// (ArgumentBuffer::Reserve or Place).

// The dimensions, types and rankings of a problem for `request`. query_type: of queries and local rows. stored: of the
// memories' rows.
cuda::AttendProblem MakeProblem(const RetrieveRequest& request, int64_t tokens, size_t batch, int64_t top_k,
                                DType query_type, DType stored);

// The same for the whole of a call whose tensors lie on the device. Requires: CheckDeviceSupport(request, kAll).
cuda::AttendProblem MakeFusedProblem(const AttendRequest& request, DType stored);

// Some queries of a sequence, numbered in the batch.
struct QueryRange {
  int64_t begin;
  int64_t end;
};

// The arrays of a search: the queries and the visible rows of each sequence, and how each head ranks rows.
class SearchArguments {
 public:
  SearchArguments(const RetrieveRequest& request, const cuda::AttendProblem& problem, ArgumentBuffer& buffer);

  // Writes the arrays that do not depend on the sequences, and sets the problem's pointers.
  void Fill(const RetrieveRequest& request, const ArgumentBuffer& buffer, cuda::AttendProblem& problem) const;

  // Makes `queries` of `sequence` sequence `number` of the launch. They see `view` of the memory, which ends for them
  // at token `memory_end`. launch_begin: the first query's number in the launch.
  void SetSequence(const RetrieveRequest& request, const Sequence& sequence, size_t number, QueryRange queries,
                   int64_t launch_begin, int64_t memory_end, const MemoryMirror::View& view,
                   const ArgumentBuffer& buffer) const;

 private:
  template <typename T>
  using Array = ArgumentBuffer::Array<T>;

  Array<cuda::MemoryRows> rows_;             // [batch]
  Array<const cuda::MemoryRows*> memories_;  // [batch]
  Array<int64_t> query_offsets_;             // [batch + 1]
  Array<float> scale_, bias_, decay_;        // [q_heads]
  Array<int32_t> top_k_;                     // [q_heads]
  Array<int64_t> positions_;                 // [tokens], less the gap of the sequence's view
  bool decays_ = false;
};

// The arrays of a whole call: those of its search, its local rows and its gates.
class FusedArguments {
 public:
  FusedArguments(const AttendRequest& request, const cuda::AttendProblem& problem, ArgumentBuffer& buffer);

  void Fill(const AttendRequest& request, const ArgumentBuffer& buffer, cuda::AttendProblem& problem) const;
  // As SearchArguments::SetSequence, for all queries of `sequence`, and with its local rows.
  void SetSequence(const RetrieveRequest& request, const Sequence& sequence, size_t number, int64_t memory_end,
                   const MemoryMirror::View& view, const ArgumentBuffer& buffer) const;

 private:
  const bool has_local_;
  SearchArguments search_;
  ArgumentBuffer::Array<int64_t> local_offsets_;  // [batch + 1]
  ArgumentBuffer::Array<float> gate_;             // [q_heads]
};

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_DEVICE_PROBLEM_H_
