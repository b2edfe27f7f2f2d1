// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_SEED_CACHE_H_
#define MNEME_MEMORY_SEED_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <vector>

#include "absl/types/span.h"

#include "base/mutex.h"

namespace mneme {

// One list of token indices for each query head.
struct SeedTokens {
  explicit SeedTokens(std::pmr::memory_resource* arena = std::pmr::get_default_resource())
      : tokens(arena), ends(arena) {}

  std::pmr::vector<int64_t> tokens;  // the lists, one behind the other
  std::pmr::vector<size_t> ends;     // [query_heads]: where each list ends; empty: no lists

  absl::Span<const int64_t> OfHead(size_t head) const {
    if (head >= ends.size()) return {};
    const size_t begin = head == 0 ? 0 : ends[head - 1];
    return absl::MakeConstSpan(tokens).subspan(begin, ends[head] - begin);
  }
};

// The tokens that the last query of each layer retrieved. Neighbouring queries retrieve similar rows, so the next
// search ranks these rows first and learns early which logit a row must reach. Seeds change the speed of a search and
// never its result. Thread-safe: Get and Set copy into buffers that are reused.
class SeedCache {
 public:
  explicit SeedCache(size_t layers) : seeds_(layers) {}

  // `seeds` has no lists before the layer's first Set.
  void Get(size_t layer, SeedTokens* seeds) const {
    MutexLock lock(&mutex_);
    *seeds = seeds_[layer];
  }
  void Set(size_t layer, const SeedTokens& seeds) {
    MutexLock lock(&mutex_);
    SeedTokens& own = seeds_[layer];
    own.ends.clear();  // leaves no lists if copying the tokens throws
    own.tokens = seeds.tokens;
    own.ends = seeds.ends;
  }

  // Returns: bytes of RAM held.
  size_t MemoryBytes() const {
    MutexLock lock(&mutex_);
    size_t bytes = seeds_.capacity() * sizeof(SeedTokens);
    for (const SeedTokens& layer : seeds_) {
      bytes += layer.tokens.capacity() * sizeof(int64_t) + layer.ends.capacity() * sizeof(size_t);
    }
    return bytes;
  }

 private:
  mutable Mutex mutex_;
  std::vector<SeedTokens> seeds_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme

#endif  // MNEME_MEMORY_SEED_CACHE_H_
