// SPDX-License-Identifier: Apache-2.0
#include "memory/segment/row_cache.h"

#include <iterator>
#include <utility>

namespace mneme {

bool RowCache::Admits(RowKind kind, size_t bytes, uint64_t* last_request) {
  if (budget_ == 0) return true;
  MutexLock lock(&mutex_);
  const uint64_t since = std::exchange(*last_request, ++clock_);
  size_t needed = bytes;
  for (size_t k = 0; k <= static_cast<size_t>(kind); ++k) needed += lists_[k].bytes;
  const std::list<Entry>& same = lists_[static_cast<size_t>(kind)].entries;
  for (auto entry = same.rbegin(); needed > budget_ && entry != same.rend() && entry->last_used < since; ++entry) {
    needed -= entry->bytes;
  }
  return needed <= budget_;
}

void RowCache::Touch(const std::shared_ptr<CachedRowsOwner>& owner, size_t layer, RowKind kind, size_t bytes) {
  if (budget_ == 0) return;
  std::list<Entry> released;
  {
    MutexLock lock(&mutex_);
    const Key key{owner.get(), layer, kind};
    EntryList& list = lists_[static_cast<size_t>(kind)];
    if (const auto place = places_.find(key); place != places_.end()) {
      list.entries.splice(list.entries.begin(), list.entries, place->second);
      list.bytes += bytes - list.entries.front().bytes;
      list.entries.front().bytes = bytes;
    } else {
      std::list<Entry> added;
      added.push_front({key, owner, bytes, 0});
      places_.emplace(key, added.begin());
      list.entries.splice(list.entries.begin(), added);
      list.bytes += bytes;
    }
    list.entries.front().last_used = ++clock_;
    released = TakeOverBudget(key);
  }
  for (const Entry& entry : released) {
    if (const auto held = entry.owner.lock()) held->Release(std::get<1>(entry.key), std::get<2>(entry.key));
  }
}

std::list<RowCache::Entry> RowCache::TakeOverBudget(const Key& used) {
  std::list<Entry> taken;
  const bool keep_used = std::get<RowKind>(used) == RowKind::kCodes;
  size_t total = 0;
  for (const EntryList& list : lists_) total += list.bytes;
  for (size_t k = kRowKinds; k-- > 0;) {
    EntryList& list = lists_[k];
    while (total > budget_ && !list.entries.empty() && !(keep_used && list.entries.back().key == used)) {
      const Entry& last = list.entries.back();
      total -= last.bytes;
      list.bytes -= last.bytes;
      places_.erase(last.key);
      taken.splice(taken.end(), list.entries, std::prev(list.entries.end()));
    }
  }
  return taken;
}

void RowCache::Remove(const CachedRowsOwner* owner) {
  if (budget_ == 0) return;
  MutexLock lock(&mutex_);
  for (EntryList& list : lists_) {
    for (auto entry = list.entries.begin(); entry != list.entries.end();) {
      if (std::get<0>(entry->key) != owner) {
        ++entry;
        continue;
      }
      list.bytes -= entry->bytes;
      places_.erase(entry->key);
      entry = list.entries.erase(entry);
    }
  }
}

}  // namespace mneme
