// SPDX-License-Identifier: Apache-2.0
#include "attention/local.h"

#include <algorithm>
#include <cstddef>

#include "attention/kernels.h"
#include "base/scratch.h"

namespace mneme {
namespace {

// Rows of queries that run over a tile together in a long block: each widened tile serves all of them, and their
// queries, weights and outputs stay in the second-level cache beside it.
constexpr int64_t kMostRowsTogether = 96;
constexpr int64_t kFloatsTogether = 32 * 1024;

int64_t RoundUp(int64_t n) {
  return (n + 15) / 16 * 16;
}

// Keeps sums of row numbers far from overflow; no mask means anything beyond.
int64_t Clamped(int64_t n) {
  return std::clamp(n, -(int64_t{1} << 61), int64_t{1} << 61);
}

}  // namespace

bool LocalMask::Visible(int64_t query, int64_t row) const {
  const int64_t newest = query + Clamped(offset);
  switch (kind) {
    case Kind::kNone: return true;
    case Kind::kCausal: return row <= newest;
    case Kind::kSlidingWindow: return row <= newest && row > newest - Clamped(window);
    case Kind::kBits: return (bits[query * bits_stride + row / 8] >> (row % 8) & 1) != 0;
  }
  return false;
}

int64_t LocalScratchFloats(const LocalKernelArgs& args) {
  const int64_t rows = args.block_queries * args.group;
  const int64_t key_dim = RoundUp(args.key_dim);
  const int64_t value_dim = RoundUp(args.value_dim);
  return rows * (key_dim + 2 * value_dim + kLocalTile) + 3 * RoundUp(rows) + RoundUp(2 * args.block_queries) +
         kLocalTile * (key_dim + value_dim);
}

void AttendLocalOn(CpuTarget target, const LocalProblem& problem, int64_t block_queries, float* output,
                   float* log_sum_exp) {
  LocalKernelArgs args = {};
  args.queries = problem.queries;
  args.query_count = problem.query_count;
  args.first_query = problem.first_query;
  args.group = problem.group;
  args.key_dim = problem.keys.dim;
  args.key_dtype = problem.keys.dtype;
  args.key_bytes = problem.keys.row_stride * static_cast<int64_t>(DTypeSize(problem.keys.dtype));
  args.value_dim = problem.values.dim;
  args.value_dtype = problem.values.dtype;
  args.value_bytes = problem.values.row_stride * static_cast<int64_t>(DTypeSize(problem.values.dtype));
  args.row_count = problem.row_count;
  if (problem.row_count > 0) {  // an empty tensor may have no data at all
    args.keys = static_cast<const char*>(problem.keys.Row(problem.row_begin, problem.head));
    args.values = static_cast<const char*>(problem.values.Row(problem.row_begin, problem.head));
  }
  args.mask = problem.mask.kind;
  args.mask_offset = Clamped(problem.mask.offset);
  args.mask_window = Clamped(problem.mask.window);
  args.mask_bits = problem.mask.bits;
  args.mask_bits_bytes = problem.mask.bits_stride;
  args.scales = problem.scales;
  args.soft_cap = problem.soft_cap;
  if (block_queries <= 0) {
    const int64_t rows = kFloatsTogether / (args.key_dim + args.value_dim + kLocalTile);
    block_queries = std::min(rows, kMostRowsTogether) / args.group;
  }
  args.block_queries = std::max<int64_t>(1, std::min(block_queries, args.query_count));
  args.output = output;
  args.log_sum_exp = log_sum_exp;

  constexpr size_t kAlignment = 64;
  // Not initialised: clearing it would cost more than a short decode step reads of it.
  Scratch scratch;
  args.scratch =
      static_cast<float*>(scratch.allocate(static_cast<size_t>(LocalScratchFloats(args)) * sizeof(float), kAlignment));

  switch (target) {
    case CpuTarget::kPlain: AttendLocalPlain(args); break;
#if defined(__x86_64__)
    case CpuTarget::kAvx2: AttendLocalAvx2(args); break;
    case CpuTarget::kAvx512: AttendLocalAvx512(args); break;
#else
    default: break;
#endif
  }
}

void AttendLocal(const LocalProblem& problem, float* output, float* log_sum_exp) {
  AttendLocalOn(BestCpuTarget(), problem, 0, output, log_sum_exp);
}

}  // namespace mneme
