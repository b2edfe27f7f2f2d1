// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_CAPI_SRC_TENSORS_H_
#define MNEME_CAPI_SRC_TENSORS_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "base/tensor.h"
#include "mneme.h"

namespace mneme::capi {

// mneme_dtype counts from 1, since its 0 is the default; DType has no default and counts from 0.
inline DType DTypeOf(int32_t dtype) {
  return static_cast<DType>(dtype - MNEME_DTYPE_F32);
}
inline int32_t NumberOf(DType dtype) {
  return static_cast<int32_t>(dtype) + MNEME_DTYPE_F32;
}

// A caller's tensor [rows, heads, dim] of f32, f16 or bf16 in host memory; errors name `name` and what was wrong.
absl::StatusOr<RowTensor> ReadRowTensor(absl::string_view name, const mneme_tensor* tensor);
absl::StatusOr<MutableRowTensor> ReadMutableRowTensor(absl::string_view name, const mneme_tensor* tensor);

// A contiguous f32 output of `count` elements, whatever its number of dims.
absl::StatusOr<float*> ReadContiguousF32(absl::string_view name, const mneme_tensor* tensor, int64_t count);

absl::Status CheckShape(absl::string_view name, int64_t rows, int64_t heads, int64_t dim, int64_t expected_rows,
                        int64_t expected_heads, int64_t expected_dim);

}  // namespace mneme::capi

#endif  // MNEME_CAPI_SRC_TENSORS_H_
