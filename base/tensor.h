// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_TENSOR_H_
#define MNEME_BASE_TENSOR_H_

#include <cstdint>

#include "base/dtype.h"

namespace mneme {

// A read-only tensor [rows, heads, dim] in host memory that the caller owns. Strides are in elements and may be
// negative; the elements of one row are contiguous. Requires: the element type is not kI8.
struct RowTensor {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t heads = 0;
  int64_t dim = 0;
  int64_t row_stride = 0;
  int64_t head_stride = 0;

  // The first element of row `row` of head `head`.
  const void* Row(int64_t row, int64_t head) const {
    const int64_t offset = (row * row_stride + head * head_stride) * static_cast<int64_t>(DTypeSize(dtype));
    return static_cast<const char*>(data) + offset;
  }
};

// The same, writable.
struct MutableRowTensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t heads = 0;
  int64_t dim = 0;
  int64_t row_stride = 0;
  int64_t head_stride = 0;

  void* Row(int64_t row, int64_t head) const {
    const int64_t offset = (row * row_stride + head * head_stride) * static_cast<int64_t>(DTypeSize(dtype));
    return static_cast<char*>(data) + offset;
  }
};

}  // namespace mneme

#endif  // MNEME_BASE_TENSOR_H_
