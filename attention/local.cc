// SPDX-License-Identifier: Apache-2.0
#include "attention/local.h"

#include <algorithm>
#include <cstddef>

#include "attention/attend_kernels.h"
#include "base/scratch.h"

namespace mneme {
namespace {

// A long block of queries is divided into blocks of at most kMaxBlockRows query rows and kMaxBlockFloats floats. Each
// converted tile of local rows serves a whole block, whose queries, weights and outputs stay in the second-level cache.
constexpr int64_t kMaxBlockRows = 96;
constexpr int64_t kMaxBlockFloats = 32 * 1024;

int64_t RoundUp(int64_t n) {
  return (n + 15) / 16 * 16;
}

// Keeps sums of row numbers from overflowing. Larger numbers would select the same rows.
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

LocalKernelArgs KernelArgsOf(const LocalProblem& problem, int64_t block_queries) {
  const RowTensor &keys = problem.keys, &values = problem.values;
  const bool has_rows = problem.row_count > 0;  // an empty tensor may have no data
  return {
      .queries = problem.queries,
      .query_count = problem.query_count,
      .first_query = problem.first_query,
      .group = problem.group,
      .keys = has_rows ? static_cast<const char*>(keys.Row(problem.row_begin, problem.head)) : nullptr,
      .key_bytes = keys.row_stride * static_cast<int64_t>(DTypeSize(keys.dtype)),
      .key_dim = keys.dim,
      .key_dtype = keys.dtype,
      .values = has_rows ? static_cast<const char*>(values.Row(problem.row_begin, problem.head)) : nullptr,
      .value_bytes = values.row_stride * static_cast<int64_t>(DTypeSize(values.dtype)),
      .value_dim = values.dim,
      .value_dtype = values.dtype,
      .row_count = problem.row_count,
      .mask = problem.mask.kind,
      .mask_offset = Clamped(problem.mask.offset),
      .mask_window = Clamped(problem.mask.window),
      .mask_bits = problem.mask.bits,
      .mask_bits_bytes = problem.mask.bits_stride,
      .scales = problem.scales,
      .soft_cap = problem.soft_cap,
      .block_queries = std::max<int64_t>(1, std::min(block_queries, problem.query_count)),
      .scratch = nullptr,
      .output = nullptr,
      .log_sum_exp = nullptr,
  };
}

void AttendLocalWith(const AttendKernels& kernels, const LocalProblem& problem, int64_t block_queries, float* output,
                     float* log_sum_exp) {
  if (block_queries <= 0) {
    const int64_t rows = kMaxBlockFloats / (problem.keys.dim + problem.values.dim + kLocalTile);
    block_queries = std::min(rows, kMaxBlockRows) / problem.group;
  }
  LocalKernelArgs args = KernelArgsOf(problem, block_queries);
  args.output = output;
  args.log_sum_exp = log_sum_exp;
  // Not initialised, because clearing it would take longer than a short decode step.
  Scratch scratch;
  args.scratch =
      static_cast<float*>(scratch.allocate(static_cast<size_t>(LocalScratchFloats(args)) * sizeof(float), 64));
  kernels.attend_local(args);
}

void AttendLocal(const LocalProblem& problem, float* output, float* log_sum_exp) {
  AttendLocalWith(AttendKernelsFor(BestCpuTarget()), problem, 0, output, log_sum_exp);
}

}  // namespace mneme
