// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_ARENAS_H_
#define MNEME_BASE_ARENAS_H_

#include <cstddef>

namespace mneme {

// Memory for rows (RowArray). It is aligned to 64 bytes; large arenas become resident only where they are written.

inline constexpr size_t kPage = 4096;
inline constexpr size_t kHugePage = size_t{2} << 20;

inline constexpr size_t PageRoundUp(size_t bytes) {
  return (bytes + kPage - 1) & ~(kPage - 1);
}

// Returns: the bytes that malloc uses for an allocation of `bytes` bytes, with its header and rounding.
inline constexpr size_t AllocatedBytes(size_t bytes) {
  constexpr size_t kHeader = 8, kGrain = 16, kLeast = 32;
  const size_t rounded = (bytes + kHeader + kGrain - 1) / kGrain * kGrain;
  return rounded < kLeast ? kLeast : rounded;
}

// Arenas of kHugePage bytes or more are mapped and ask for huge pages. Errors: throws std::bad_alloc.
char* AllocateArena(size_t bytes);
void FreeArena(char* arena, size_t bytes);

}  // namespace mneme

#endif  // MNEME_BASE_ARENAS_H_
