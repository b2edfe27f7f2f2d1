// SPDX-License-Identifier: Apache-2.0
#include "capi/src/tensors.h"

#include <cstdlib>

#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "capi/src/boundary.h"

namespace mneme::capi {
namespace {

// Elements of one tensor; keeps every byte offset far from overflow.
constexpr int64_t kMaxElements = int64_t{1} << 44;

absl::Status Wrong(absl::string_view name, absl::string_view what, absl::string_view expected, int64_t actual) {
  return absl::InvalidArgumentError(absl::StrCat(name, ".", what, ": expected ", expected, ", got ", actual));
}

absl::Status CheckPlace(absl::string_view name, const mneme_tensor* tensor) {
  if (tensor == nullptr) return NullArgument(name);
  if (tensor->device_type == MNEME_DEVICE_CUDA) {
    return absl::UnimplementedError(absl::StrCat(name,
                                                 ".device_type: expected host memory (MNEME_DEVICE_CPU, 1), which "
                                                 "alone this call takes, got a CUDA tensor (2)"));
  }
  if (tensor->device_type != MNEME_DEVICE_CPU) {
    return Wrong(name, "device_type", "MNEME_DEVICE_CPU (1)", tensor->device_type);
  }
  if (tensor->ndim < 1 || tensor->ndim > 8) return Wrong(name, "ndim", "1 to 8", tensor->ndim);
  if (tensor->shape == nullptr) return NullArgument(absl::StrCat(name, ".shape"));
  int64_t elements = 1;
  for (int32_t i = 0; i < tensor->ndim; ++i) {
    const int64_t extent = tensor->shape[i];
    if (extent < 0 || extent > kMaxElements) return Wrong(name, absl::StrCat("shape[", i, "]"), "0 to 2^44", extent);
    if (extent > 0 && elements > kMaxElements / extent) {
      return Wrong(name, absl::StrCat("shape[", i, "]"), "a product of at most 2^44 elements", extent);
    }
    elements *= extent;
  }
  if (tensor->data == nullptr && elements > 0) return NullArgument(absl::StrCat(name, ".data"));
  return absl::OkStatus();
}

absl::Status CheckAlignment(absl::string_view name, const void* data, size_t alignment) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  if (address % alignment == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ".data: expected an address that is a multiple of ", alignment,
                                                 " bytes, got 0x", absl::Hex(address)));
}

template <typename Tensor>
absl::StatusOr<Tensor> Read(absl::string_view name, const mneme_tensor* tensor) {
  MNEME_RETURN_IF_ERROR(CheckPlace(name, tensor));
  if (tensor->ndim != 3) return Wrong(name, "ndim", "3 ([tokens, heads, dim])", tensor->ndim);
  if (tensor->dtype != MNEME_DTYPE_F32 && tensor->dtype != MNEME_DTYPE_F16 && tensor->dtype != MNEME_DTYPE_BF16) {
    return Wrong(name, "dtype", "MNEME_DTYPE_F32 (1), MNEME_DTYPE_F16 (2) or MNEME_DTYPE_BF16 (3)", tensor->dtype);
  }
  Tensor result;
  result.data = tensor->data;
  result.dtype = DTypeOf(tensor->dtype);
  result.rows = tensor->shape[0];
  result.heads = tensor->shape[1];
  result.dim = tensor->shape[2];
  result.row_stride = result.heads * result.dim;
  result.head_stride = result.dim;
  if (tensor->strides != nullptr) {
    for (int32_t i = 0; i < 2; ++i) {
      if (tensor->strides[i] > kMaxElements || tensor->strides[i] < -kMaxElements) {
        return Wrong(name, absl::StrCat("strides[", i, "]"), "within 2^44 elements", tensor->strides[i]);
      }
    }
    if (result.dim > 1 && tensor->strides[2] != 1) {
      return Wrong(name, "strides[2]", "1 (the last dim is contiguous)", tensor->strides[2]);
    }
    result.row_stride = tensor->strides[0];
    result.head_stride = tensor->strides[1];
  }
  MNEME_RETURN_IF_ERROR(CheckAlignment(name, result.data, DTypeSize(result.dtype)));
  return result;
}

}  // namespace

absl::StatusOr<RowTensor> ReadRowTensor(absl::string_view name, const mneme_tensor* tensor) {
  return Read<RowTensor>(name, tensor);
}

absl::StatusOr<MutableRowTensor> ReadMutableRowTensor(absl::string_view name, const mneme_tensor* tensor) {
  return Read<MutableRowTensor>(name, tensor);
}

absl::StatusOr<float*> ReadContiguousF32(absl::string_view name, const mneme_tensor* tensor, int64_t count) {
  MNEME_RETURN_IF_ERROR(CheckPlace(name, tensor));
  if (tensor->dtype != MNEME_DTYPE_F32) return Wrong(name, "dtype", "MNEME_DTYPE_F32 (1)", tensor->dtype);
  int64_t elements = 1;
  for (int32_t i = tensor->ndim - 1; i >= 0; --i) {
    if (tensor->strides != nullptr && tensor->shape[i] > 1 && tensor->strides[i] != elements) {
      return Wrong(name, absl::StrCat("strides[", i, "]"), absl::StrCat(elements, " (contiguous)"), tensor->strides[i]);
    }
    elements *= tensor->shape[i];
  }
  if (elements != count) return Wrong(name, "shape", absl::StrCat(count, " elements in all"), elements);
  MNEME_RETURN_IF_ERROR(CheckAlignment(name, tensor->data, sizeof(float)));
  return static_cast<float*>(tensor->data);
}

absl::Status CheckShape(absl::string_view name, int64_t rows, int64_t heads, int64_t dim, int64_t expected_rows,
                        int64_t expected_heads, int64_t expected_dim) {
  if (rows == expected_rows && heads == expected_heads && dim == expected_dim) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ": expected shape [", expected_rows, ", ", expected_heads, ", ",
                                                 expected_dim, "], got [", rows, ", ", heads, ", ", dim, "]"));
}

}  // namespace mneme::capi
