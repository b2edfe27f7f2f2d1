// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_CODE_BLOCK_H_
#define MNEME_INDEX_SCAN_CODE_BLOCK_H_

#include <stdint.h>

#include "base/inline.h"

// The layout of codes, in memory and on disk. Included by kernels (docs/design/kernels.md).
//
// Sixteen rows are coded together as a block; sixteen blocks form a chunk, whose rows share a mean. `dim` is the coded
// dimension, a multiple of kTileDims. A block is
//
//   BlockHeader  header
//   uint8_t      codes[dim / 4][kBlockRows][4]    four dimensions of row 0, the same four of row 1, …
//
// so that one vector register holds four dimensions of many rows. docs/design/scan.md derives the bounds.

namespace mneme::codes {

inline constexpr int kBlockRows = 16;
inline constexpr int kChunkBlocks = 16;

// Dimensions that the kernels take at a time.
inline constexpr int kTileDims = 16;

// Code c stands for the number (c - kZeroCode) / inverse_scale of its row. Codes are from 1 to 127, so that AVX2 can
// add two products in 16 bits.
inline constexpr int kZeroCode = 64;
inline constexpr int kMaxCodeMagnitude = 63;  // the greatest |c - kZeroCode|

// `error` and `norm` are in units of 1 / inverse_scale of the row. In these units rows hardly differ, so one number
// serves the whole block.
struct alignas(64) BlockHeader {
  uint16_t inverse_scale[kBlockRows];  // bf16
  float error;  // upper bound, for every row, of the norm of (centred and rotated key - what its code stands for)
  float norm;   // upper bound, for every row, of the norm of what its code stands for
};

MNEME_INLINE constexpr int64_t BlockBytes(int64_t dim) {
  return dim * kBlockRows + static_cast<int64_t>(sizeof(BlockHeader));
}

}  // namespace mneme::codes

#endif  // MNEME_INDEX_SCAN_CODE_BLOCK_H_
