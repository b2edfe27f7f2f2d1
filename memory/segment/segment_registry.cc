// SPDX-License-Identifier: Apache-2.0
#include "memory/segment/segment_registry.h"

#include <algorithm>
#include <utility>

#include "base/out_of_memory.h"
#include "base/status.h"

namespace mneme {
namespace {

// Dropped segments in chunks are worth deleting from these numbers on.
constexpr int64_t kManyDroppedSegments = 1024;
constexpr int64_t kManyDroppedBytes = int64_t{64} << 20;

// What a manifest names in the column family of index blobs: its indices, then its attachments.
size_t BlobCount(const MemoryManifest& manifest) {
  return manifest.indexes.size() + manifest.attachments.size();
}

IndexId BlobId(const MemoryManifest& manifest, size_t i) {
  const size_t indexes = manifest.indexes.size();
  return i < indexes ? manifest.indexes[i].id : manifest.attachments[i - indexes].id;
}

}  // namespace

SegmentRegistry::SegmentRegistry(Database* database, std::shared_ptr<SegmentContext> context)
    : database_(database), context_(std::move(context)) {}

std::shared_ptr<Segment> SegmentRegistry::FindOrMake(SegmentId id, const ModelCard& card, DType dtype, int64_t rows) {
  MutexLock lock(&mutex_);
  PruneExpired();
  std::weak_ptr<Segment>& place = segments_[id];
  if (std::shared_ptr<Segment> segment = place.lock()) {
    segment->ExtendTo(rows);
    return segment;
  }
  std::shared_ptr<Segment> segment = Segment::NewSealed(id, card, dtype, database_, context_, rows);
  place = segment;
  return segment;
}

void SegmentRegistry::Add(const std::shared_ptr<Segment>& segment) {
  MutexLock lock(&mutex_);
  PruneExpired();
  segments_[segment->id()] = segment;
}

void SegmentRegistry::ReplaceTail(const std::shared_ptr<Segment>& sealed) noexcept {
  MutexLock lock(&mutex_);
  if (const auto place = segments_.find(sealed->id()); place != segments_.end()) place->second = sealed;
}

void SegmentRegistry::PruneExpired() {
  if (segments_.size() < prune_size_) return;
  std::erase_if(segments_, [](const auto& entry) { return entry.second.expired(); });
  prune_size_ = std::max(kMinPruneSize, 2 * segments_.size());
}

bool SegmentRegistry::IsHeld(SegmentId id) const {
  const auto place = segments_.find(id);
  return place != segments_.end() && !place->second.expired();
}

bool SegmentRegistry::HasDroppedChunks() const {
  MutexLock lock(&mutex_);
  return std::any_of(dropped_.begin(), dropped_.end(), [](const DroppedSegment& each) { return each.chunk_bytes > 0; });
}

bool SegmentRegistry::ChunksAreDue(Urgency urgency, int64_t chunk_disk_bytes) const {
  int64_t bytes = 0, segments = 0;
  bool evicted = false;
  for (const DroppedSegment& dropped : dropped_) {
    if (dropped.chunk_bytes == 0 || IsHeld(dropped.id)) continue;
    bytes += dropped.chunk_bytes;
    ++segments;
    evicted |= dropped.evicted;
  }
  if (segments == 0) return false;
  return urgency == Urgency::kNow || evicted || segments >= kManyDroppedSegments ||
         bytes >= std::min(kManyDroppedBytes, chunk_disk_bytes / 4);
}

std::vector<SegmentRegistry::DroppedSegment> SegmentRegistry::TakeDropped(Urgency urgency) {
  const int64_t chunk_disk_bytes = HasDroppedChunks() ? static_cast<int64_t>(database_->ChunkDiskBytes()) : 0;
  MutexLock lock(&mutex_);
  const bool chunks_are_due = ChunksAreDue(urgency, chunk_disk_bytes);
  const auto stays = [&](const DroppedSegment& dropped) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return (dropped.chunk_bytes > 0 && !chunks_are_due) || IsHeld(dropped.id);
  };
  const auto first = std::partition(dropped_.begin(), dropped_.end(), stays);
  std::vector<DroppedSegment> taken(first, dropped_.end());
  dropped_.erase(first, dropped_.end());
  for (const DroppedSegment& dropped : taken) segments_.erase(dropped.id);
  return taken;
}

absl::Status SegmentRegistry::DeleteSegments(const std::vector<DroppedSegment>& segments, Urgency urgency) {
  std::vector<SegmentId> in_logs, in_chunks;
  for (const DroppedSegment& each : segments) (each.chunk_bytes > 0 ? in_chunks : in_logs).push_back(each.id);
  MNEME_RETURN_IF_ERROR(database_->DropLogs(in_logs));
  MNEME_RETURN_IF_ERROR(database_->DropSegments(in_chunks));
  const bool now = urgency == Urgency::kNow;
  return now || !segments.empty() ? database_->Compact(now) : absl::OkStatus();
}

absl::Status SegmentRegistry::TryFreeDropped(Urgency urgency) {
  const std::vector<DroppedSegment> taken = TakeDropped(urgency);
  const absl::Status status = CatchExceptions("delete segments", [&] { return DeleteSegments(taken, urgency); });
  if (status.ok()) return status;
  // It does no harm to delete a segment twice.
  MutexLock lock(&mutex_);
  dropped_.reserve(dropped_.size() + taken.size() + reserved_drops_);
  dropped_.insert(dropped_.end(), taken.begin(), taken.end());
  return status;
}

void SegmentRegistry::FreeDropped(Urgency urgency) noexcept {
  const absl::Status status = CatchExceptions("free dropped segments", [&] { return TryFreeDropped(urgency); });
  if (!status.ok()) Log(status.message());
}

void SegmentRegistry::Log(absl::string_view message) const noexcept {
  if (!context_->log) return;
  CatchExceptions("log", [&] {
    context_->log(message);
    return absl::OkStatus();
  }).IgnoreError();  // out of memory, or a host's callback that throws: the message is lost
}

ManifestSwap::ManifestSwap(SegmentRegistry* registry, const MemoryManifest* before, const MemoryManifest* after)
    : registry_(registry), before_(before), after_(after) {
  if (before != nullptr) unnamed_blobs_.reserve(BlobCount(*before));
  MutexLock lock(&registry_->mutex_);
  if (before != nullptr) {
    const size_t reserved = registry_->reserved_drops_ + before->segments.size();
    std::vector<SegmentRegistry::DroppedSegment>& dropped = registry_->dropped_;
    // Twice the size, as a vector grows, since the next swap comes soon.
    if (dropped.capacity() < dropped.size() + reserved) dropped.reserve(2 * (dropped.size() + reserved));
    registry_->reserved_drops_ = reserved;
  }
  if (after == nullptr) return;
  // `after` is counted before `before` is removed, so that what both name never has a count of zero.
  size_t segments = 0, blobs = 0;
  try {
    for (const SegmentRef& ref : after->segments) ++registry_->segment_references_[ref.id], ++segments;
    for (; blobs < BlobCount(*after); ++blobs) ++registry_->blob_references_[BlobId(*after, blobs)];
  } catch (...) {
    RemoveReferences(*after, segments, blobs, /*drop=*/false);
    if (before != nullptr) registry_->reserved_drops_ -= before->segments.size();
    throw;
  }
}

void ManifestSwap::RemoveReferences(const MemoryManifest& manifest, size_t segments, size_t blobs, bool drop) {
  for (size_t i = 0; i < segments; ++i) {
    const SegmentRef& ref = manifest.segments[i];
    const auto count = registry_->segment_references_.find(ref.id);
    if (--count->second > 0) continue;
    registry_->segment_references_.erase(count);
    if (!drop) continue;
    registry_->dropped_.push_back(
        {.id = ref.id,
         .chunk_bytes = ref.chunked_rows * TokenBytes(manifest.card, manifest.options.stored_dtype),
         .evicted = after_ != nullptr});
  }
  for (size_t i = 0; i < blobs; ++i) {
    const auto count = registry_->blob_references_.find(BlobId(manifest, i));
    if (--count->second > 0) continue;
    registry_->blob_references_.erase(count);
    if (drop) unnamed_blobs_.push_back(BlobId(manifest, i));
  }
}

void ManifestSwap::Replaced() noexcept {
  {
    MutexLock lock(&registry_->mutex_);
    replaced_ = true;
    if (before_ != nullptr) {
      RemoveReferences(*before_, before_->segments.size(), BlobCount(*before_), /*drop=*/true);
      registry_->reserved_drops_ -= before_->segments.size();
    }
  }
  if (unnamed_blobs_.empty()) return;
  // A reader that still holds such an index and misses its blob builds it from the rows.
  const absl::Status status = CatchExceptions("delete indices and attachments",
                                              [this] { return registry_->database_->DropIndexes(unnamed_blobs_); });
  if (!status.ok()) registry_->Log(status.message());
}

ManifestSwap::~ManifestSwap() {
  if (replaced_) return;
  MutexLock lock(&registry_->mutex_);
  // No count becomes zero that another thread has seen: what `after` names is new, or `before` names it, or the memory
  // that is forked, whose manifest stays while its fork is written.
  if (after_ != nullptr) RemoveReferences(*after_, after_->segments.size(), BlobCount(*after_), /*drop=*/false);
  if (before_ != nullptr) registry_->reserved_drops_ -= before_->segments.size();
}

}  // namespace mneme
