// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_F16C_H_
#define MNEME_BASE_F16C_H_

// Internal: rows by the instructions of CpuTarget::kAvx2. The numbers are dtype.cc's; of a NaN only that it is one, and
// its sign.

#include <stddef.h>
#include <stdint.h>

namespace mneme {

// Converts the first elements of n, a multiple of eight of them, and returns how many; the rest is left to the caller.
size_t WidenF16c(const void* source, float* destination, size_t n);
size_t NarrowF16c(const float* source, void* destination, size_t n);

// What EncodeFinite does: rows of `dim` elements, `stride` bytes apart, to f16, or as they are. `infinity`: the bits of
// the element type's exponent.
bool NarrowFiniteF16c(const void* source, int64_t stride, size_t rows, size_t dim, void* encoded);
bool CopyFinite16(const void* source, int64_t stride, size_t rows, size_t dim, uint16_t infinity, void* encoded);
bool CopyFinite32(const void* source, int64_t stride, size_t rows, size_t dim, void* encoded);

}  // namespace mneme

#endif  // MNEME_BASE_F16C_H_
