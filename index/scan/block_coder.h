// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_BLOCK_CODER_H_
#define MNEME_INDEX_SCAN_BLOCK_CODER_H_

// Internal: how sixteen keys become a block of codes (code_kernel.h), and its kernels for each instruction set. As in
// scan_kernel.h, plain data only. The arithmetic is explained in docs/design/scan.md.

#include <stdint.h>

#include "index/scan/code_kernel.h"

namespace mneme::codes {

// Every set gives the same bits, since codes are kept on disk: each row has a lane of its own, whatever a vector holds,
// sums run in one order, and nothing is fused.
struct BlockCoder {
  const char* name;

  // Adds n rows f32 [n][dim], one after the other, to sums [dim]; dim is a multiple of 16.
  void (*add)(const float* rows, int64_t n, int64_t dim, float* sums);

  // Makes the block of rows f32 [kBlockRows][coded_dim], zero behind `dim`, less mean [coded_dim], zero there as well.
  // weights [coded_dim]: what each difference is multiplied by before the transform (RotationWeights).
  // columns: scratch of the rows' size, at a multiple of 64 bytes, as is `block`.
  void (*code)(const float* rows, const float* mean, const float* weights, int64_t dim, int64_t coded_dim,
               float* columns, char* block);
};

extern const BlockCoder kPlainCoder;
#if defined(__x86_64__)
extern const BlockCoder kAvx2Coder;
extern const BlockCoder kAvx512Coder;
#endif

}  // namespace mneme::codes

#endif  // MNEME_INDEX_SCAN_BLOCK_CODER_H_
