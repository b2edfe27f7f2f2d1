// SPDX-License-Identifier: Apache-2.0
// The kernels that make codes, with vectors of 16 bytes, for any CPU.

#include "base/inline.h"
#include "index/scan/coding_kernel.h"

namespace mneme::codes {
namespace {

typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));

MNEME_INLINE void Transpose(Floats* v) {
  const Floats a = {v[0][0], v[1][0], v[2][0], v[3][0]}, b = {v[0][1], v[1][1], v[2][1], v[3][1]};
  const Floats c = {v[0][2], v[1][2], v[2][2], v[3][2]}, d = {v[0][3], v[1][3], v[2][3], v[3][3]};
  v[0] = a;
  v[1] = b;
  v[2] = c;
  v[3] = d;
}

}  // namespace
}  // namespace mneme::codes

#include "index/scan/coding_kernel-inl.h"

namespace mneme::codes {

const CodingKernels kPlainCodingKernels = {
    .name = "plain",
    .add_rows = &AddRows,
    .encode_block = &EncodeBlock,
    .rotate = &RotateVector,
};

}  // namespace mneme::codes
