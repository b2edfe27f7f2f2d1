// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_SEGMENT_ROW_CACHE_H_
#define MNEME_MEMORY_SEGMENT_ROW_CACHE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <tuple>
#include <unordered_map>

#include "absl/hash/hash.h"

#include "base/mutex.h"

namespace mneme {

// What a segment can hold in RAM of one layer. The lower number is kept longer: every search reads all codes, a few
// keys and fewer values.
enum class RowKind : uint8_t { kCodes = 0, kKeys = 1, kValues = 2 };
inline constexpr size_t kRowKinds = 3;

// An owner of cached rows. The cache calls it to give back RAM.
class CachedRowsOwner {
 public:
  // Frees one layer's rows or codes. Called without the cache's lock.
  virtual void Release(size_t layer, RowKind kind) = 0;

 protected:
  ~CachedRowsOwner() = default;
};

// Keeps the rows and codes that sealed segments hold in RAM within a byte budget. Values are released first, then keys,
// then codes; within a kind the least recently used first. One cache belongs to one store. Thread-safe.
//
// Lock order: an owner's lock before the cache's. So the cache releases rows after it has dropped its own lock.
class RowCache {
 public:
  // budget_bytes 0: no limit, and nothing is counted.
  explicit RowCache(size_t budget_bytes) : budget_(budget_bytes) {}

  bool bounded() const { return budget_ > 0; }

  // Returns: whether `bytes` of `kind` fit beside all kinds that are kept longer and beside those entries of `kind`
  // that were used since `last_request`. So layers that are searched in turn do not evict each other in turn.
  // `last_request` is the caller's, one for each layer and kind, 0 at first; this call sets it to the present.
  // Codes need no admission, since every search reads them.
  bool Admits(RowKind kind, size_t bytes, uint64_t* last_request);

  // Marks one layer's rows or codes as just used; a new entry is added with `bytes`. May release other entries, and the
  // entry itself if every entry of a lower worth is gone already; never the codes that were just used.
  // Requires: the caller does not hold the owner's lock.
  void Touch(const std::shared_ptr<CachedRowsOwner>& owner, size_t layer, RowKind kind, size_t bytes);

  // Removes every entry of an owner that is being destroyed.
  void Remove(const CachedRowsOwner* owner);

 private:
  using Key = std::tuple<const CachedRowsOwner*, size_t, RowKind>;
  struct Entry {
    Key key;
    std::weak_ptr<CachedRowsOwner> owner;
    size_t bytes;
    uint64_t last_used;  // a value of clock_
  };
  struct EntryList {
    std::list<Entry> entries;  // most recently used first
    size_t bytes = 0;
  };

  // Moves entries out of the lists until the rest fits the budget; keeps `used` if it is one of codes.
  std::list<Entry> TakeOverBudget(const Key& used) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const size_t budget_;
  Mutex mutex_;
  std::array<EntryList, kRowKinds> lists_ ABSL_GUARDED_BY(mutex_);  // by kind
  // Not one of Abseil's tables: an allocation that fails while one of those grows damages it.
  std::unordered_map<Key, std::list<Entry>::iterator, absl::Hash<Key>> places_ ABSL_GUARDED_BY(mutex_);
  uint64_t clock_ ABSL_GUARDED_BY(mutex_) = 0;  // counts admissions and uses
};

}  // namespace mneme

#endif  // MNEME_MEMORY_SEGMENT_ROW_CACHE_H_
