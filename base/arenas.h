#ifndef MNEME_BASE_ARENAS_H_
#define MNEME_BASE_ARENAS_H_

#include <cstddef>

#include "base/mutex.h"

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

// Cuts small arenas of many arrays that grow together from few mappings, page by page as they are written. Huge pages
// are not asked for: the kernel may look for one for a quarter of a second, in the midst of an append. Whoever asks has
// as many bytes of full arenas already, and before kHugePage has been asked for nothing is cut.
//
// What was cut outlives the source, and is given back piece by piece. Thread-safe.
class ArenaSource {
 public:
  ArenaSource() = default;
  ~ArenaSource();
  ArenaSource(const ArenaSource&) = delete;
  ArenaSource& operator=(const ArenaSource&) = delete;

  // Null: take it from elsewhere. Pieces of one size begin at different places of a page, and of a cache: a row of each
  // of many arrays would else want the same few lines of it.
  char* Cut(size_t bytes);
  static void GiveBack(char* piece, size_t bytes);

 private:
  // Of a piece with what it is shifted by.
  static constexpr size_t CutBytes(size_t bytes) { return PageRoundUp(bytes) + kPage; }

  Mutex mutex_;
  size_t asked_ ABSL_GUARDED_BY(mutex_) = 0;
  char* next_ ABSL_GUARDED_BY(mutex_) = nullptr;
  size_t left_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t pieces_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace mneme

#endif  // MNEME_BASE_ARENAS_H_
