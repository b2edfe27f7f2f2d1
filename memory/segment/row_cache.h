// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_SEGMENT_ROW_CACHE_H_
#define MNEME_MEMORY_SEGMENT_ROW_CACHE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <tuple>

#include "absl/container/flat_hash_map.h"

#include "base/mutex.h"

namespace mneme {

class Segment;

// What of a segment's layer can be in memory; what is kept first comes first. Every search reads all codes, but few
// keys and fewer values.
enum class RowKind : uint8_t { kCodes = 0, kKeys = 1, kValues = 2 };
inline constexpr size_t kRowKinds = 3;

// Keeps what sealed segments have in memory within a byte budget: values leave first, then keys, then codes, and of
// each what was used longest ago. Thread-safe.
class RowCache {
 public:
  // 0: no bound.
  explicit RowCache(size_t budget_bytes) : budget_(budget_bytes) {}

  bool bounded() const { return budget_ > 0; }

  // Whether `bytes` of a kind should be brought in to stay: there is room for them beside the kinds that are kept first
  // and whatever of the same kind was used since `asked`, which was the time when the same was last asked for (0:
  // never) and becomes the present one. So layers that are searched in turn do not drive each other out in turn, and
  // what nobody uses any more makes room. Codes are not asked for: no search can do without them.
  bool Admits(RowKind kind, size_t bytes, uint64_t* asked);

  // One layer's codes or rows of a segment were used (and, if new, brought in with `bytes`). May let go of others, and
  // of the very rows that were used where nothing else of less worth is left; not of the codes. Must not be called with
  // the segment's mutex held.
  void Used(const std::shared_ptr<Segment>& segment, size_t layer, RowKind kind, size_t bytes);

  // The segment is going away.
  void Forget(const Segment* segment);

 private:
  using Key = std::tuple<const Segment*, size_t, RowKind>;
  struct Entry {
    Key key;
    std::weak_ptr<Segment> segment;
    size_t bytes;
    uint64_t used;  // when
  };
  struct Kind {
    std::list<Entry> entries;  // most recently used first
    size_t bytes = 0;
  };

  Kind& KindOf(const Key& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return kinds_[static_cast<size_t>(std::get<RowKind>(key))];
  }

  const size_t budget_;
  Mutex mutex_;
  std::array<Kind, kRowKinds> kinds_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<Key, std::list<Entry>::iterator> places_ ABSL_GUARDED_BY(mutex_);
  uint64_t now_ ABSL_GUARDED_BY(mutex_) = 0;  // counts what is asked for and used
};

}  // namespace mneme

#endif  // MNEME_MEMORY_SEGMENT_ROW_CACHE_H_
