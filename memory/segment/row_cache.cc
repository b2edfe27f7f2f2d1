// SPDX-License-Identifier: Apache-2.0
#include "memory/segment/row_cache.h"

#include <utility>
#include <vector>

#include "memory/segment/segment.h"

namespace mneme {

bool RowCache::Admits(RowKind kind, size_t bytes, uint64_t* asked) {
  if (budget_ == 0) return true;
  MutexLock lock(&mutex_);
  const uint64_t since = std::exchange(*asked, ++now_);
  size_t kept = bytes;
  for (size_t k = 0; k <= static_cast<size_t>(kind); ++k) kept += kinds_[k].bytes;
  const std::list<Entry>& same = kinds_[static_cast<size_t>(kind)].entries;
  for (auto entry = same.rbegin(); kept > budget_ && entry != same.rend() && entry->used < since; ++entry) {
    kept -= entry->bytes;
  }
  return kept <= budget_;
}

void RowCache::Used(const std::shared_ptr<Segment>& segment, size_t layer, RowKind kind, size_t bytes) {
  if (budget_ == 0) return;
  std::vector<Entry> leaving;
  {
    MutexLock lock(&mutex_);
    const Key key{segment.get(), layer, kind};
    Kind& own = KindOf(key);
    if (const auto place = places_.find(key); place != places_.end()) {
      own.entries.splice(own.entries.begin(), own.entries, place->second);
      own.bytes += bytes - own.entries.front().bytes;
      own.entries.front().bytes = bytes;
    } else {
      own.entries.push_front({key, segment, bytes, 0});
      places_[key] = own.entries.begin();
      own.bytes += bytes;
    }
    own.entries.front().used = ++now_;
    size_t all = 0;
    for (const Kind& each : kinds_) all += each.bytes;
    for (size_t k = kRowKinds; k-- > 0;) {
      Kind& from = kinds_[k];
      const bool named_stays = std::get<RowKind>(key) == RowKind::kCodes;
      while (all > budget_ && !from.entries.empty() && !(named_stays && from.entries.back().key == key)) {
        all -= from.entries.back().bytes;
        from.bytes -= from.entries.back().bytes;
        places_.erase(from.entries.back().key);
        leaving.push_back(std::move(from.entries.back()));
        from.entries.pop_back();
      }
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
  for (Kind& kind : kinds_) {
    for (auto entry = kind.entries.begin(); entry != kind.entries.end();) {
      if (std::get<0>(entry->key) != segment) {
        ++entry;
        continue;
      }
      kind.bytes -= entry->bytes;
      places_.erase(entry->key);
      entry = kind.entries.erase(entry);
    }
  }
}

}  // namespace mneme
