// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_ARENAS_H_
#define MNEME_BASE_ARENAS_H_

#include <cstddef>

namespace mneme {

// Memory for rows (RowArray): begins at multiples of 64 bytes and costs nothing until it is written.

inline constexpr size_t kPage = 4096;
inline constexpr size_t kHugePage = size_t{2} << 20;

inline constexpr size_t PageRoundUp(size_t bytes) {
  return (bytes + kPage - 1) & ~(kPage - 1);
}

// What malloc holds for an object or arena of so many bytes: its header, and what it rounds up to.
inline constexpr size_t AllocatedBytes(size_t bytes) {
  constexpr size_t kHeader = 8, kGrain = 16, kLeast = 32;
  const size_t rounded = (bytes + kHeader + kGrain - 1) / kGrain * kGrain;
  return rounded < kLeast ? kLeast : rounded;
}

// Throws std::bad_alloc. From kHugePage on it is mapped, and asks for huge pages.
char* AllocateArena(size_t bytes);
void FreeArena(char* arena, size_t bytes);

}  // namespace mneme

#endif  // MNEME_BASE_ARENAS_H_
