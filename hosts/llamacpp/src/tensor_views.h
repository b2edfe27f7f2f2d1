// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_SRC_TENSOR_VIEWS_H_
#define MNEME_HOSTS_LLAMACPP_SRC_TENSOR_VIEWS_H_

#include <array>
#include <cstdint>

#include "ggml.h"
#include "mneme.h"

namespace mneme::llama {

// A mneme_tensor [rows, heads, dim] over memory that llama.cpp or the adapter owns. Not to be copied: the tensor points
// into it.
class RowsView {
 public:
  // Dense f32 rows.
  RowsView(const float* data, int64_t rows, int64_t heads, int64_t dim)
      : RowsView(const_cast<float*>(data), MNEME_DTYPE_F32, {rows, heads, dim}, {heads * dim, dim, 1}) {}

  // Rows [first, first + rows) of a permuted ggml view [dim, rows, heads], as attention nodes have them.
  RowsView(const ggml_tensor& tensor, int64_t first, int64_t rows)
      : RowsView(static_cast<char*>(tensor.data) + first * tensor.nb[1], TypeOf(tensor.type),
                 {rows, tensor.ne[2], tensor.ne[0]},
                 {Elements(tensor, tensor.nb[1]), Elements(tensor, tensor.nb[2]), 1}) {}

  RowsView(const RowsView&) = delete;
  RowsView& operator=(const RowsView&) = delete;

  const mneme_tensor* get() const { return &tensor_; }

 private:
  RowsView(void* data, mneme_dtype type, std::array<int64_t, 3> shape, std::array<int64_t, 3> strides)
      : shape_(shape), strides_(strides), tensor_{data, type, MNEME_DEVICE_CPU, 0, 3, shape_.data(), strides_.data()} {}

  // The graph check let no other types pass.
  static mneme_dtype TypeOf(ggml_type type) {
    return type == GGML_TYPE_F16 ? MNEME_DTYPE_F16 : type == GGML_TYPE_BF16 ? MNEME_DTYPE_BF16 : MNEME_DTYPE_F32;
  }
  static int64_t Elements(const ggml_tensor& tensor, size_t bytes) {
    return static_cast<int64_t>(bytes / ggml_type_size(tensor.type));
  }

  const std::array<int64_t, 3> shape_;
  const std::array<int64_t, 3> strides_;
  const mneme_tensor tensor_;
};

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_SRC_TENSOR_VIEWS_H_
