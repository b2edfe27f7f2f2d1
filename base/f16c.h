#ifndef MNEME_BASE_F16C_H_
#define MNEME_BASE_F16C_H_

// Internal: f16 by the instructions that CpuTarget::kAvx2 has for it. The numbers are dtype.cc's; of a NaN only that it
// is one, and its sign.

#include <stddef.h>

namespace mneme {

// Converts the first elements of n, a multiple of eight of them, and returns how many; the rest is left to the caller.
size_t WidenF16c(const void* source, float* destination, size_t n);
size_t NarrowF16c(const float* source, void* destination, size_t n);

}  // namespace mneme

#endif  // MNEME_BASE_F16C_H_
