#ifndef MNEME_MEMORY_LAST_FOUND_H_
#define MNEME_MEMORY_LAST_FOUND_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "base/mutex.h"

namespace mneme {

// What the last query of a layer retrieved, a list of tokens for each query head. Neighbouring queries want much the same
// rows, so these tell the next search early how good a row has to be. They never change what it finds. Thread-safe.
class LastFound {
 public:
  using Tokens = std::vector<std::vector<int64_t>>;

  explicit LastFound(size_t layers) : tokens_(layers) {}

  // Null before the first.
  std::shared_ptr<const Tokens> Get(size_t layer) const {
    MutexLock lock(&mutex_);
    return tokens_[layer];
  }
  void Set(size_t layer, std::shared_ptr<const Tokens> tokens) {
    MutexLock lock(&mutex_);
    tokens_[layer] = std::move(tokens);
  }

 private:
  mutable Mutex mutex_;
  std::vector<std::shared_ptr<const Tokens>> tokens_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme

#endif  // MNEME_MEMORY_LAST_FOUND_H_
