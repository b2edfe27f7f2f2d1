// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_PLAN_H_
#define MNEME_ATTENTION_CUDA_PLAN_H_

#include <string>

#include "attention/cuda/problem.h"

// How the work of a call is divided into blocks. The host fixes it by bounds of the lengths; the device reads the
// lengths themselves (how many rows a sequence has).
namespace mneme::cuda {

// What the host knows about the lengths. Results are right for greater lengths, too, but the work is divided less
// evenly.
struct AttendBounds {
  int64_t queries = 1;      // of one sequence
  int64_t memory_rows = 0;  // of one memory
  int64_t local_rows = 0;   // of one sequence
  // memory_rows is not known, as in a graph that is replayed while memories grow. Then there are as many ranges as the
  // device can use, and the device divides each memory's rows among them.
  bool memory_grows = false;
};

// Query columns, which are (token, head of the group) pairs, that a block takes together.
inline constexpr int kDecodeColumns = 8;  // the N side of one tensor-core product
inline constexpr int kPrefillColumns = 32;

inline constexpr int kMaxTopK = 256;
inline constexpr int kMaxCandidates = 8192;  // rows of one query that the last kernel ranks
inline constexpr int kMaxRanges = 64;
inline constexpr int kMaxLocalSplits = 16;
inline constexpr int kMaxCapacity = 512;  // candidates of one query in a block
inline constexpr int kLocalChunk = 128;   // local rows whose logits a block holds
inline constexpr int kRangeStep = 128;    // rows: the ranges that the device makes are multiples of it

struct AttendPlan {
  int32_t columns = kDecodeColumns;  // kDecodeColumns or kPrefillColumns
  int32_t column_tiles = 0;
  int32_t ranges = 0;      // of each memory
  int64_t range_rows = 0;  // at least; see RangeRows
  int32_t splits = 0;      // of the local rows, likewise
  int64_t split_rows = 0;
  int32_t capacity = 0;  // at least top_k and a step's rows
  // The workspace: candidates [tokens, q_heads, ranges, top_k], then local outputs f32 [tokens, q_heads, splits,
  // value_dim] and their log-sum-exps [tokens, q_heads, splits].
  int64_t local_outputs_at = 0;  // in bytes
  int64_t local_sums_at = 0;
  int64_t workspace_bytes = 0;
  int32_t search_shared_bytes = 0;
};

// The blocks of the search that run at once: multiprocessors times blocks on each.
struct DeviceRoom {
  int64_t blocks = 1;
};

// Checks the problem and the bounds. Returns: "" or the name of the wrong argument with what is expected and what was
// given. It does not read device memory, so offsets, lengths and rows are not checked.
std::string CheckProblem(const AttendProblem& problem, const AttendBounds& bounds);

// search_warps: the warps of a block of the search. Requires: CheckProblem finds nothing wrong.
AttendPlan PlanAttend(const AttendProblem& problem, const AttendBounds& bounds, DeviceRoom room, int search_warps);

// Rows [first, last) of piece `index` of `count` pieces of `rows_each`; the last piece takes the rest.
struct RowSlice {
  int64_t first;
  int64_t last;
};
MNEME_HOST_DEVICE RowSlice Slice(int64_t begin, int64_t end, int64_t index, int64_t count, int64_t rows_each) {
  const int64_t first = begin + index * rows_each;
  const int64_t last = index + 1 == count ? end : Least(end, first + rows_each);
  return {Least(first, end), Least(last, end)};
}

// Returns: the rows of each range but the last, for a memory with `rows` visible rows: the plan's range_rows, or more
// if the plan's ranges would not cover all rows.
MNEME_HOST_DEVICE int64_t RangeRows(const AttendPlan& plan, int64_t rows) {
  return Greatest(plan.range_rows, RoundUp(CeilDivide(rows, plan.ranges), kRangeStep));
}

// Returns: how many of the pieces have a row.
MNEME_HOST_DEVICE int64_t SlicesUsed(int64_t rows, int64_t count, int64_t rows_each) {
  return rows <= 0 || count <= 0 ? 0 : Least(count, CeilDivide(rows, rows_each));
}

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_PLAN_H_
