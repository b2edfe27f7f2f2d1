// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_ROWS_LAYOUT_H_
#define MNEME_ATTENTION_CUDA_ROWS_LAYOUT_H_

#include "attention/cuda/device_rows.h"

namespace mneme::cuda {

// Rows from the host pass through this much device memory, to be rounded there.
inline constexpr int64_t kStagingBytes = int64_t{1} << 20;

// Where DeviceRows' one allocation holds what, in bytes; every part aligned to 256.
struct RowsLayout {
  int64_t keys, values, key_scales, value_scales, staging, rows, bytes;
};
RowsLayout LayoutOf(const RowsShape& shape);

// "" or what is wrong with an append of `tokens` to rows of which `size` are there. `captured`: into a graph. Its
// replays alone know how many rows there are then, and read the host's memory when it may hold something else.
std::string CheckAppend(const RowsShape& shape, int64_t size, int64_t tokens, const RowsToAppend& keys,
                        const RowsToAppend& values, bool captured);

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_ROWS_LAYOUT_H_
