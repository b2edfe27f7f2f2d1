// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_LAST_FOUND_H_
#define MNEME_MEMORY_ATTEND_LAST_FOUND_H_

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <vector>

#include "absl/types/span.h"

#include "base/mutex.h"

namespace mneme {

// A list of tokens for each query head.
struct FoundTokens {
  explicit FoundTokens(std::pmr::memory_resource* memory = std::pmr::get_default_resource())
      : tokens(memory), ends(memory) {}

  std::pmr::vector<int64_t> tokens;  // list after list
  std::pmr::vector<size_t> ends;     // [heads]: where each list ends; empty: there is none

  absl::Span<const int64_t> OfHead(size_t head) const {
    if (head >= ends.size()) return {};
    const size_t begin = head == 0 ? 0 : ends[head - 1];
    return absl::MakeConstSpan(tokens).subspan(begin, ends[head] - begin);
  }
};

// What the last query of a layer retrieved. Neighbouring queries want much the same rows, so these tell the next search
// early how good a row has to be. They never change what it finds. Thread-safe: what goes in and out is copied, into
// room that is kept.
class LastFound {
 public:
  explicit LastFound(size_t layers) : found_(layers) {}

  // Nothing before the first Set.
  void Get(size_t layer, FoundTokens* found) const {
    MutexLock lock(&mutex_);
    *found = found_[layer];
  }
  void Set(size_t layer, const FoundTokens& found) {
    MutexLock lock(&mutex_);
    FoundTokens& own = found_[layer];
    own.ends.clear();  // nothing is known should there be no room for the tokens
    own.tokens = found.tokens;
    own.ends = found.ends;
  }

  // Bytes of memory held.
  size_t MemoryBytes() const {
    MutexLock lock(&mutex_);
    size_t bytes = found_.capacity() * sizeof(FoundTokens);
    for (const FoundTokens& layer : found_) {
      bytes += layer.tokens.capacity() * sizeof(int64_t) + layer.ends.capacity() * sizeof(size_t);
    }
    return bytes;
  }

 private:
  mutable Mutex mutex_;
  std::vector<FoundTokens> found_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_LAST_FOUND_H_
