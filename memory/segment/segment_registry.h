// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_SEGMENT_SEGMENT_REGISTRY_H_
#define MNEME_MEMORY_SEGMENT_SEGMENT_REGISTRY_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

#include "base/mutex.h"
#include "memory/segment/segment.h"
#include "storage/database.h"

namespace mneme {

// The segments, indices and attachments of a store: the one object of each segment, how many manifests name each, and
// which can be deleted. A segment is dropped when no manifest names it any more; its disk is freed once no reader holds
// it either. Owned by the store. Thread-safe; RocksDB is never called with the lock held.
class SegmentRegistry {
 public:
  // `database` outlives the registry.
  SegmentRegistry(Database* database, std::shared_ptr<SegmentContext> context);

  const std::shared_ptr<SegmentContext>& context() const { return context_; }

  // Returns: the object of a sealed segment of at least `rows` rows, made if none is alive.
  std::shared_ptr<Segment> FindOrMake(SegmentId id, const ModelCard& card, DType dtype, int64_t rows);
  // Adds a segment that was made elsewhere.
  void Add(const std::shared_ptr<Segment>& segment);
  // Puts a sealed segment in the place of the tail that it was made from. Cannot fail.
  void ReplaceTail(const std::shared_ptr<Segment>& sealed) noexcept;

  // When the disk of dropped segments is freed. Each time costs flushes and syncs.
  enum class Urgency {
    // Once they are many, take much of the disk, or were evicted from a memory that remains.
    kWhenWorthwhile,
    kNow,
  };
  // Frees the disk of dropped segments that no reader holds. Errors are logged, and the segments are tried again.
  void FreeDropped(Urgency urgency) noexcept;

 private:
  friend class ManifestSwap;

  struct DroppedSegment {
    SegmentId id = 0;
    int64_t chunk_bytes = 0;  // 0: it has log records only
    bool evicted = false;     // by a memory that remains, so its bound should hold for the disk too
  };

  // Moves the segments that should be deleted now out of dropped_.
  std::vector<DroppedSegment> TakeDropped(Urgency urgency) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status TryFreeDropped(Urgency urgency);
  absl::Status DeleteSegments(const std::vector<DroppedSegment>& segments, Urgency urgency);
  // Returns: whether the dropped segments in chunks should be deleted now, if these take a fourth of chunk_disk_bytes.
  bool ChunksAreDue(Urgency urgency, int64_t chunk_disk_bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool HasDroppedChunks() const ABSL_LOCKS_EXCLUDED(mutex_);
  bool IsHeld(SegmentId id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Removes entries of segments that no longer exist, once these may be half of all.
  void PruneExpired() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Log(absl::string_view message) const noexcept;

  static constexpr size_t kMinPruneSize = 1024;

  Database* const database_;
  const std::shared_ptr<SegmentContext> context_;

  // The tables are not Abseil's: an allocation that fails while one of those grows damages it.
  mutable Mutex mutex_;
  std::unordered_map<SegmentId, std::weak_ptr<Segment>> segments_ ABSL_GUARDED_BY(mutex_);
  size_t prune_size_ ABSL_GUARDED_BY(mutex_) = kMinPruneSize;  // segments_ is pruned when it has so many entries
  std::unordered_map<SegmentId, int64_t> segment_references_ ABSL_GUARDED_BY(mutex_);  // manifests that name it
  std::unordered_map<IndexId, int64_t> blob_references_ ABSL_GUARDED_BY(mutex_);       // of indices and attachments
  std::vector<DroppedSegment> dropped_ ABSL_GUARDED_BY(mutex_);
  size_t reserved_drops_ ABSL_GUARDED_BY(mutex_) = 0;  // places in dropped_ that manifest swaps have reserved
};

// Counts references while a manifest takes the place of another (null: there was none, or is none now). It is made
// before the write that replaces the manifest, so that nothing can fail between that write and the counts. Both
// manifests and the registry outlive it. Belongs to one thread.
class ManifestSwap {
 public:
  // Counts what `after` names. If it throws std::bad_alloc, no count has changed.
  ManifestSwap(SegmentRegistry* registry, const MemoryManifest* before, const MemoryManifest* after);
  // Removes the references of `after` again, unless Replaced was called.
  ~ManifestSwap();
  ManifestSwap(const ManifestSwap&) = delete;
  ManifestSwap& operator=(const ManifestSwap&) = delete;

  // To be called after the write: `before` names nothing any more. Deletes indices and attachments that no manifest
  // names now, and notes segments as dropped.
  void Replaced() noexcept;

 private:
  // Removes one reference to each of the first `segments` segments, and `blobs` indices and attachments, of `manifest`.
  // drop: what has none left is dropped.
  void RemoveReferences(const MemoryManifest& manifest, size_t segments, size_t blobs, bool drop)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(registry_->mutex_);

  SegmentRegistry* const registry_;
  const MemoryManifest* const before_;
  const MemoryManifest* const after_;
  std::vector<IndexId> unnamed_blobs_;
  bool replaced_ = false;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_SEGMENT_SEGMENT_REGISTRY_H_
