// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_PREFETCH_H_
#define MNEME_BASE_PREFETCH_H_

#include <cstddef>

namespace mneme {

// Prefetches `bytes` bytes from `begin` on, in lines of 64 bytes. It only starts the reads, and any address is allowed.
inline void PrefetchBytes(const void* begin, size_t bytes) {
  constexpr size_t kLine = 64;
  for (size_t byte = 0; byte < bytes; byte += kLine) __builtin_prefetch(static_cast<const char*>(begin) + byte);
}

}  // namespace mneme

#endif  // MNEME_BASE_PREFETCH_H_
