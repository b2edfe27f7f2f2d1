// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_F16C_H_
#define MNEME_BASE_F16C_H_

// Internal: rows by the instructions of CpuTarget::kAvx2. The numbers are dtype.cc's; of a NaN only that it is one, and
// its sign.

#include <stddef.h>
#include <stdint.h>

namespace mneme {

// Converts as many of n elements as are a multiple of 8. Returns: how many; the caller converts the rest.
size_t WidenF16c(const void* source, float* destination, size_t n);
size_t NarrowF16c(const float* source, void* destination, size_t n);

// The parts of EncodeFinite (base/dtype.h): convert rows of `dim` elements, `stride` bytes apart, to f16, or copy them.
// Return: whether all elements are finite. infinity: the bits of the element type's infinity.
bool NarrowFiniteF16c(const void* source, int64_t stride, size_t rows, size_t dim, void* encoded);
bool CopyFinite16(const void* source, int64_t stride, size_t rows, size_t dim, uint16_t infinity, void* encoded);
bool CopyFinite32(const void* source, int64_t stride, size_t rows, size_t dim, void* encoded);

}  // namespace mneme

#endif  // MNEME_BASE_F16C_H_
