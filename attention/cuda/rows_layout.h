// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_ROWS_LAYOUT_H_
#define MNEME_ATTENTION_CUDA_ROWS_LAYOUT_H_

#include "attention/cuda/device_rows.h"

namespace mneme::cuda {

// Rows from the host are copied through a buffer of this size in device memory, where they are rounded.
inline constexpr int64_t kStagingBytes = int64_t{1} << 20;

// The layout of DeviceRows' one allocation, in bytes. Every part is aligned to 256 bytes.
struct RowsLayout {
  int64_t keys, values, key_scales, value_scales, staging, rows, bytes;
};
RowsLayout LayoutOf(const RowsShape& shape);

// Returns: "" or what is wrong with an append of `tokens` rows to `size` rows.
// captured: the append becomes part of a graph. Then the number of rows is known to its replays only, and the source
// must not lie on the host, where it may have changed by the time of a replay.
std::string CheckAppend(const RowsShape& shape, int64_t size, int64_t tokens, const RowsToAppend& keys,
                        const RowsToAppend& values, bool captured);

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_ROWS_LAYOUT_H_
