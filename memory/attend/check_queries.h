// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_CHECK_QUERIES_H_
#define MNEME_MEMORY_ATTEND_CHECK_QUERIES_H_

#include "absl/status/status.h"

#include "memory/attend/argument_error.h"
#include "memory/attend/request.h"

namespace mneme {

// Errors: InvalidArgument if a query or memory query of the sequence has NaN or infinity.
// memory_query_is_query: the two are one tensor. Requires: the tensors lie in host memory.
inline absl::Status CheckQueries(const AttendRequest& request, const Sequence& sequence, bool memory_query_is_query) {
  const absl::Status status = CheckFinite(Argument::kQuery, request.query, sequence.query_begin, sequence.query_end);
  if (!status.ok() || memory_query_is_query) return status;
  return CheckFinite(Argument::kMemoryQuery, request.retrieve.memory_query, sequence.query_begin, sequence.query_end);
}

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_CHECK_QUERIES_H_
