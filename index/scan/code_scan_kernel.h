// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_CODE_SCAN_KERNEL_H_
#define MNEME_INDEX_SCAN_CODE_SCAN_KERNEL_H_

#include <stdint.h>

#include "index/scan/code_block.h"

// Internal to index/scan: the interface between the scan over codes and its kernels, one set for each instruction set
// (docs/design/kernels.md). docs/design/scan.md derives the bound that the kernels compare.

namespace mneme::codes {

inline constexpr int kMaxQueryValue = 127;  // the greatest magnitude of a coded query's value
inline constexpr int kQueryLanes = 8;       // queries that lie side by side, one in each lane
inline constexpr int kMeansPerCall = 4;     // means that Kernels::dot_means multiplies at once

// One coded query during a scan. Its values are stored apart (PackQueryValues). For row r of a block,
//
//   dot(query, key r) <= mean_dot + (step * sum + error_weight * header.error + norm_weight * header.norm)
//                                   / inverse_scale[r],        sum = start + values · codes[r]
//
// where mean_dot is the query's dot product with the mean of the row's chunk.
struct Query {
  int32_t start;       // -kZeroCode * (sum of the values)
  float step;          // what 1 in the values stands for; 0 for a zero query
  float inverse_step;  // 1 / step; infinity if step is 0
  float error_weight;  // upper bound of the query's norm
  float norm_weight;   // upper bound of the norm of (rotated query - what its values stand for)
  float min_dot;       // rows whose dot product is certainly below it are skipped
};

// Consecutive blocks.
struct BlockSpan {
  const char* blocks;
  int64_t count;            // of blocks
  int64_t first_row;        // place in the codes of the first row of the first block, a multiple of kBlockRows
  int64_t prefetch_bytes;   // from each block to the block to prefetch meanwhile; 0: the kernels' own distance, for
                            // blocks that are read in order
  const float* mean_dots;   // [queries] for the chunk of first_row
  int64_t mean_dot_stride;  // floats from the mean_dots of one chunk to those of the next
};

// The rows of one block that may reach a query's min_dot.
struct BlockHits {
  int64_t query;      // number of the query
  float mean_dot;     // of this query and the block's chunk
  int64_t first_row;  // place in the codes of the block's first row
  const BlockHeader* header;
  const int32_t* sums;  // [kBlockRows] start + values · codes, for all rows of the block
  uint32_t rows;        // bit r: row first_row + r may reach min_dot (or its bound is NaN)
};

// Receives hits during a scan. It may raise query.min_dot.
using HitCallback = void (*)(void* context, Query& query, const BlockHits& hits);

// The functions of a scan over codes, one set for each instruction set, and what they need of the queries' layout.
struct Kernels {
  const char* name;

  // Queries that share each load of a block.
  int group_queries;

  // 0: sums never overflow. Else the kernels add products in 16 bits, and of the eight values of a tile with equal
  // d % 4 / 2 the positive ones, and the magnitudes of the negative ones, must each add up to at most this.
  int max_int16_sum;

  // Each four values of a query are stored this many times side by side, to fill a vector register with one load.
  int value_copies;

  // Compares `count` queries with all rows of `span`. values: the queries' values as PackQueryValues stores them.
  void (*scan)(const BlockSpan& span, int64_t dim, const int8_t* values, Query* queries, int64_t count,
               HitCallback on_hits, void* context);

  // dots [kMeansPerCall][kQueryLanes] = the dot products of kQueryLanes queries, f32 [dim][kQueryLanes], and
  // kMeansPerCall means, f32 [dim] each. Each is off by less than dim * 2^-24 * |query| * |mean|.
  void (*dot_means)(const float* queries, const float* const* means, int64_t dim, float* dots);
};

extern const Kernels kPlainKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512VnniKernels;
#endif
#if defined(__aarch64__)
extern const Kernels kNeonKernels;
#endif

// The kernels in use: the best for this CPU (MNEME_KERNELS may lower it, see base/cpu.h), or those set for a test.
const Kernels& CurrentKernels();

// Returns: the kernels called `name` if this build has them and this CPU runs them, else null.
const Kernels* FindKernels(const char* name);

// Makes the process use `kernels`; null: the best for this CPU. For tests. Requires: no scan is running.
void UseKernelsForTesting(const Kernels* kernels);

}  // namespace mneme::codes

#endif  // MNEME_INDEX_SCAN_CODE_SCAN_KERNEL_H_
