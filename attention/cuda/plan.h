// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_PLAN_H_
#define MNEME_ATTENTION_CUDA_PLAN_H_

#include <string>

#include "attention/cuda/problem.h"

// How the work of a call is cut into blocks: fixed on the host from bounds, before lengths are known. All that the
// device knows better (how many rows a sequence has) it looks up itself.
namespace mneme::cuda {

// What the host knows of the lengths. Greater lengths are still computed rightly, only with a worse cut.
struct AttendBounds {
  int64_t queries = 1;      // of one sequence
  int64_t memory_rows = 0;  // of one memory
  int64_t local_rows = 0;   // of one sequence
  // Nothing is known of memory_rows, as in a graph that is replayed while memories grow: as many ranges as the device
  // can use, which it cuts itself by what each memory has.
  bool memory_grows = false;
};

// Query columns, (token, head of the group) pairs, that a block takes together.
inline constexpr int kDecodeColumns = 8;  // the N side of one tensor-core product
inline constexpr int kPrefillColumns = 32;

inline constexpr int kMaxTopK = 256;
inline constexpr int kMaxCandidates = 8192;  // rows of one query that the last kernel ranks
inline constexpr int kMaxRanges = 64;
inline constexpr int kMaxLocalSplits = 16;
inline constexpr int kMaxCapacity = 512;  // candidates of one query in a block
inline constexpr int kLocalChunk = 128;   // local rows whose logits a block holds
inline constexpr int kRangeStep = 128;    // what the device cuts on its own is a multiple of so many rows

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

// Blocks of the search that run at once: multiprocessors times blocks on each.
struct DeviceRoom {
  int64_t blocks = 1;
};

// Says what is wrong with the problem: the argument's name, what is expected and what came; "" if nothing is. Looks at
// no device memory: offsets, lengths and rows are the caller's word. The same for the bounds.
std::string CheckProblem(const AttendProblem& problem, const AttendBounds& bounds);

// For a problem that CheckProblem lets pass. `search_warps`: of a block of the search.
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

// Rows of each range, but for the last, of a memory of which `rows` are visible: the plan's, or more where that many
// ranges would leave some over.
MNEME_HOST_DEVICE int64_t RangeRows(const AttendPlan& plan, int64_t rows) {
  return Greatest(plan.range_rows, RoundUp(CeilDivide(rows, plan.ranges), kRangeStep));
}

// How many of the pieces have a row.
MNEME_HOST_DEVICE int64_t SlicesUsed(int64_t rows, int64_t count, int64_t rows_each) {
  return rows <= 0 || count <= 0 ? 0 : Least(count, CeilDivide(rows, rows_each));
}

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_PLAN_H_
