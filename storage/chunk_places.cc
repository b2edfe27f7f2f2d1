// SPDX-License-Identifier: Apache-2.0
#include "storage/chunk_places.h"

#include <mutex>

namespace mneme {
namespace {

// At some 100 bytes each, and a header of 4 bytes for each sub-block of 4 KiB. What is forgotten is found again.
constexpr size_t kMostEntries = size_t{1} << 18;

}  // namespace

ChunkPlaces::Place ChunkPlaces::Find(const std::string& key) const {
  const std::shared_lock lock(mutex_);
  const auto found = entries_.find(key);
  if (found == entries_.end()) return {};
  const Entry& entry = found->second;
  return {{entry.file.lock(), entry.offset, entry.bytes}, entry.header};
}

void ChunkPlaces::Put(const std::string& key, const FoundValue& value) {
  const std::lock_guard lock(mutex_);
  if (entries_.size() >= kMostEntries) entries_.clear();
  entries_[key] = {value.file, value.offset, value.bytes, std::string()};
}

void ChunkPlaces::SetHeader(const std::string& key, absl::string_view header) {
  const std::lock_guard lock(mutex_);
  if (const auto entry = entries_.find(key); entry != entries_.end()) entry->second.header = std::string(header);
}

void ChunkPlaces::Forget(const std::string& key) {
  const std::lock_guard lock(mutex_);
  entries_.erase(key);
}

}  // namespace mneme
