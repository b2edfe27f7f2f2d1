// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_PREFETCH_H_
#define MNEME_BASE_PREFETCH_H_

#include <cstddef>

namespace mneme {

// Asks for `bytes` bytes, a line of 64 after another from `begin` on: they are on their way to the caches when this
// returns. A hint, which no address makes fail.
inline void PrefetchBytes(const void* begin, size_t bytes) {
  constexpr size_t kLine = 64;
  for (size_t byte = 0; byte < bytes; byte += kLine) __builtin_prefetch(static_cast<const char*>(begin) + byte);
}

}  // namespace mneme

#endif  // MNEME_BASE_PREFETCH_H_
