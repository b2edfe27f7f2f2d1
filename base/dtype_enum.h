// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_DTYPE_ENUM_H_
#define MNEME_BASE_DTYPE_ENUM_H_

#include <stdint.h>

// The one enum of element types. It stands alone so that kernels and CUDA sources, which must not include the inline
// functions of base/dtype.h, share it.

namespace mneme {

// Element types of tensors and of stored rows. The numbers are part of the on-disk format and equal mneme_dtype of the
// C ABI.
enum class DType : uint8_t {
  kF32 = 0,
  kF16 = 1,   // IEEE 754 binary16
  kBF16 = 2,  // the upper half of a binary32, rounded to nearest even
  kI8 = 3,    // stored rows only: signed bytes and one f32 scale for each row
};

}  // namespace mneme

#endif  // MNEME_BASE_DTYPE_ENUM_H_
