#ifndef MNEME_MEMORY_ROW_CACHE_H_
#define MNEME_MEMORY_ROW_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <tuple>

#include "absl/container/flat_hash_map.h"

#include "base/mutex.h"

namespace mneme {

class Segment;

enum class RowKind : uint8_t { kKeys = 0, kValues = 1 };

// Keeps the rows of sealed segments in memory within a byte budget: what was used longest ago is let go of first and
// read again when needed. Thread-safe.
class RowCache {
 public:
  // 0: no bound.
  explicit RowCache(size_t budget_bytes) : budget_(budget_bytes) {}

  // One layer's rows of a segment were used (and, if new, brought in with `bytes`). May let go of others; never of
  // the one named. Must not be called with the segment's mutex held.
  void Used(const std::shared_ptr<Segment>& segment, size_t layer, RowKind kind, size_t bytes);

  // The segment is going away.
  void Forget(const Segment* segment);

 private:
  using Key = std::tuple<const Segment*, size_t, RowKind>;
  struct Entry {
    Key key;
    std::weak_ptr<Segment> segment;
    size_t bytes;
  };

  const size_t budget_;
  Mutex mutex_;
  std::list<Entry> entries_ ABSL_GUARDED_BY(mutex_);  // most recently used first
  absl::flat_hash_map<Key, std::list<Entry>::iterator> places_ ABSL_GUARDED_BY(mutex_);
  size_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_ROW_CACHE_H_
