// SPDX-License-Identifier: Apache-2.0
#include "memory/segment/segment_context.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace mneme {

void SegmentContext::CountFreedBytes(size_t bytes) {
  if (freed_bytes_.fetch_add(bytes, std::memory_order_relaxed) + bytes < kTrimBytes) return;
  freed_bytes_.store(0, std::memory_order_relaxed);
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

}  // namespace mneme
