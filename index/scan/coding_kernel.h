// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_CODING_KERNEL_H_
#define MNEME_INDEX_SCAN_CODING_KERNEL_H_

#include <stdint.h>

#include "index/scan/code_block.h"

// Internal to index/scan: the kernels that make codes, one set for each instruction set (docs/design/kernels.md).
// docs/design/scan.md explains the arithmetic.

namespace mneme::codes {

// The functions that make codes, one set for each instruction set. All sets give the same bits, because codes are kept
// on disk: each row has a lane of its own, sums run in one order, and no multiply-add is fused.
struct CodingKernels {
  const char* name;

  // Adds `count` rows, f32 [count][dim], one after the other to sums [dim]. Requires: dim is a multiple of kTileDims.
  void (*add_rows)(const float* rows, int64_t count, int64_t dim, float* sums);

  // Writes the block of the keys `rows`, f32 [kBlockRows][coded_dim].
  //   mean     [coded_dim], subtracted from each row; like the rows it is zero from `dim` on
  //   weights  [coded_dim], the factors of RotationWeights
  //   columns  scratch space: f32 [coded_dim][kBlockRows]
  //   block    BlockBytes(coded_dim) bytes
  // Requires: columns and block are aligned to 64 bytes.
  void (*encode_block)(const float* rows, const float* mean, const float* weights, int64_t dim, int64_t coded_dim,
                       float* columns, char* block);

  // Multiplies the first `sign_count` elements of `vector`, f32 [dim], by `signs`, then applies the Hadamard transforms
  // of Rotate (rotation.h).
  void (*rotate)(float* vector, const float* signs, int64_t sign_count, int64_t dim);
};

extern const CodingKernels kPlainCodingKernels;
#if defined(__x86_64__)
extern const CodingKernels kAvx2CodingKernels;
extern const CodingKernels kAvx512CodingKernels;
#endif

// The best for this CPU (MNEME_KERNELS may lower it, see base/cpu.h).
const CodingKernels& BestCodingKernels();

}  // namespace mneme::codes

#endif  // MNEME_INDEX_SCAN_CODING_KERNEL_H_
