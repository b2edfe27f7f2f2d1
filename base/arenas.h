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

// Throws std::bad_alloc. From kHugePage on it is mapped, and asks for huge pages.
char* AllocateArena(size_t bytes);
void FreeArena(char* arena, size_t bytes);

}  // namespace mneme

#endif  // MNEME_BASE_ARENAS_H_
