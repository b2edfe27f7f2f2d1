#include "memory/row_cache.h"

#include <utility>
#include <vector>

#include "memory/segment.h"

namespace mneme {

void RowCache::Used(const std::shared_ptr<Segment>& segment, size_t layer, RowKind kind, size_t bytes) {
  if (budget_ == 0) return;
  std::vector<Entry> leaving;
  {
    MutexLock lock(&mutex_);
    const Key key{segment.get(), layer, kind};
    if (const auto place = places_.find(key); place != places_.end()) {
      entries_.splice(entries_.begin(), entries_, place->second);
      bytes_ += bytes - entries_.front().bytes;
      entries_.front().bytes = bytes;
    } else {
      entries_.push_front({key, segment, bytes});
      places_[key] = entries_.begin();
      bytes_ += bytes;
    }
    while (bytes_ > budget_ && entries_.size() > 1) {
      bytes_ -= entries_.back().bytes;
      places_.erase(entries_.back().key);
      leaving.push_back(std::move(entries_.back()));
      entries_.pop_back();
    }
  }
  // Outside the lock: a segment's own mutex comes before the cache's.
  for (const Entry& entry : leaving) {
    if (const auto owner = entry.segment.lock()) owner->Release(std::get<1>(entry.key), std::get<2>(entry.key));
  }
}

void RowCache::Forget(const Segment* segment) {
  if (budget_ == 0) return;
  MutexLock lock(&mutex_);
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    if (std::get<0>(entry->key) != segment) {
      ++entry;
      continue;
    }
    bytes_ -= entry->bytes;
    places_.erase(entry->key);
    entry = entries_.erase(entry);
  }
}

}  // namespace mneme
