// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_MEMORY_H_
#define MNEME_MEMORY_MEMORY_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "base/mutex.h"
#include "base/tensor.h"
#include "memory/seed_cache.h"
#include "memory/state.h"
#include "memory/store.h"
#include "storage/manifest.h"

namespace mneme {

class MemoryMirror;

struct MemoryInfo {
  int64_t next_token = 0;
  int64_t tokens = 0;
  int64_t tokens_durable = 0;
  int64_t first_kept = 0;
  int64_t segments = 0;
  int64_t tail_tokens = 0;
  int64_t indexes = 0;
  int64_t bytes = 0;
  int64_t ram_bytes = 0;
};

// Rows to copy out; pointers may be null. keys f32 [n, kv_heads, key_dim], values f32 [n, kv_heads, value_dim].
struct ReadRequest {
  int32_t layer = 0;
  int64_t begin = 0;
  int64_t tokens = 0;
  MutableRowTensor keys;
  MutableRowTensor values;
  int64_t* positions = nullptr;
  int32_t* token_ids = nullptr;
};

// One memory: sealed segments and a growing tail. Readers (TakeSnapshot, Info, Read, attend) run at any time; the
// functions that change it are refused as Aborted ("busy") while another of them runs.
class Memory : public std::enable_shared_from_this<Memory> {
 public:
  // From its manifest. Nothing but the manifest has been read when this returns.
  static absl::StatusOr<std::shared_ptr<Memory>> Load(Store* store, MemoryManifest manifest);
  ~Memory();

  const std::string& name() const { return name_; }
  const ModelCard& card() const { return card_; }
  const MemoryOptions& options() const { return options_; }
  Store& store() const { return *store_; }

  // keys [n, kv_heads, key_dim], values [n, kv_heads, value_dim]; positions and token_ids [n] or null.
  absl::Status Append(int32_t layer, const RowTensor& keys, const RowTensor& values, const int64_t* positions,
                      const int32_t* token_ids);
  absl::Status Commit(Durability durability, int64_t* tokens_durable);
  absl::Status Truncate(int64_t tokens);
  absl::Status Evict(int64_t keep_tokens);
  absl::Status Maintain(const Progress& progress);
  // Commits (and seals, if at_token lies in the tail) this memory, then writes the manifest of `name`: the first
  // at_token tokens of this one. The caller has made sure that no memory has that name.
  absl::Status ForkTo(const std::string& name, int64_t at_token);

  // The memory is closed: from now on it cannot be changed, and no build in the background writes for it any more.
  // "busy" if it is being changed.
  absl::Status Retire();

  // It lies in `memory`, which outlives it; copies of it do not.
  Snapshot TakeSnapshot(std::pmr::memory_resource* memory = std::pmr::get_default_resource()) const;
  MemoryInfo Info() const;
  // Bytes of memory that this object holds beside segments and indices: the card, the manifest, what queries found
  // last.
  int64_t OwnBytes() const;
  absl::Status Read(const ReadRequest& request) const;

  // Builds the indices that sealed segments are due and drops those that others replaced. Called inside Commit or by
  // the store's background thread.
  absl::Status BuildIndexes(const Progress& progress);

  // For searches of this memory.
  SeedCache& seed_cache() { return seed_cache_; }
  // The rows on the store's device; null where there is none, or none for rows or an index of this kind.
  MemoryMirror* mirror() const { return mirror_.get(); }

  // f32 keys [tokens, dim] of sealed tokens [first, first + tokens) of one layer and head in `state`.
  absl::Status DecodeKeys(const MemoryState& state, size_t layer, int32_t head, int64_t first, int64_t tokens,
                          float* keys) const;

 private:
  Memory(Store* store, const MemoryManifest& manifest, IndexSpec spec);

  std::shared_ptr<const MemoryState> state() const {
    MutexLock lock(&state_mutex_);
    return state_;
  }
  // Replaces the state by a changed copy of what it is now.
  template <typename Change>
  void UpdateState(const Change& change) {
    MutexLock lock(&state_mutex_);
    auto next = std::make_shared<MemoryState>(*state_);
    change(*next);
    state_ = std::move(next);
  }
  std::shared_ptr<Segment> NewTail() const;
  void NewMirror();

  // Brings in the token columns of rows [row, row + n) of the tail, or checks them against what is there.
  absl::Status AppendColumns(const MemoryState& state, int64_t row, int64_t n, const int64_t* positions,
                             const int32_t* token_ids) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutator_);
  void EvictBeyondBound();
  // seal_all: the tail's whole rows become a sealed segment even if they fill no chunk.
  absl::Status CommitLocked(Durability durability, bool seal_all, bool may_exceed_budget = false)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutator_);
  absl::Status CommitOnce(Durability durability, bool seal_all, bool may_exceed_budget)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutator_);
  absl::Status CommitAndMerge(Durability durability, int64_t* tokens_durable, bool* sealed);
  absl::Status EvictAndCommit(int64_t keep_tokens);
  // Where at least half of the tail `now` has is evicted and nothing in it is pinned, a tail without those rows.
  absl::Status CutTail(const MemoryState& now, int64_t first_kept) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutator_);
  // A tail of this many tokens is sealed: fewer than options say in a memory whose bound such segments would dwarf,
  // because disk is given back by segments.
  int64_t SealTokens() const;
  // Rewrites what is left of segments of which at least half is evicted, so that their disk is given back: a row is
  // rewritten O(log) times. `wholly`: only the pinned rest of a segment that is evicted but for that.
  absl::Status RewriteEvicted(bool wholly) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutator_);
  // RewriteEvicted; an error is logged.
  void GiveBackEvicted(bool wholly) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutator_);
  // Commits `views`, whose chunks `transaction` has, in place of the sealed segments that there are.
  absl::Status ReplaceSealed(const std::vector<SegmentView>& views, Transaction& transaction)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutator_);
  // Rows [begin, end) of `view` as a new sealed segment.
  absl::StatusOr<SegmentView> CopyOf(const SegmentView& view, int64_t begin, int64_t end,
                                     Transaction& transaction) const;
  // The codes of a segment's keys, beside its chunks.
  absl::Status WriteSealedCodes(Transaction& transaction, Segment& segment, int64_t rows) const;
  // MergeSmallSegments, if they have become many.
  absl::Status MergeIfMany() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutator_);
  // Rewrites runs of small segments, which forks and reopened tails leave, as one; sizes grow geometrically, so a row
  // is rewritten O(log) times.
  absl::Status MergeSmallSegments() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutator_);
  absl::Status PutManifest(MemoryManifest next, Transaction& transaction, Durability durability)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(commit_mutex_);
  // The part of a manifest that the state tells: options, bounds, sealed segments and indices.
  MemoryManifest ManifestOf(const MemoryState& state) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(commit_mutex_);
  absl::Status CheckWritable() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutator_);
  bool WantsIndexes() const { return spec_.kind != IndexKind::kAuto && spec_.kind != IndexKind::kScan; }

  SeedCache seed_cache_;
  std::unique_ptr<MemoryMirror> mirror_;  // since Load

  Store* const store_;
  const std::string name_;
  const ModelCard card_;
  const MemoryOptions options_;
  const IndexSpec spec_;

  Mutex mutator_;  // held by the one call that changes the memory
  std::vector<float> row_buffer_ ABSL_GUARDED_BY(mutator_);
  std::vector<int64_t> new_positions_ ABSL_GUARDED_BY(mutator_);
  std::vector<int32_t> new_ids_ ABSL_GUARDED_BY(mutator_);

  Mutex build_mutex_;                                                    // one index build at a time
  std::vector<TokenRange> not_indexable_ ABSL_GUARDED_BY(build_mutex_);  // the index kind refused them: scanned

  mutable Mutex commit_mutex_ ABSL_ACQUIRED_AFTER(mutator_);  // the manifest on disk
  MemoryManifest manifest_ ABSL_GUARDED_BY(commit_mutex_);    // as last committed
  int64_t tail_persisted_ ABSL_GUARDED_BY(mutator_) = 0;      // rows of the present tail in the database
  int64_t tail_chunked_ ABSL_GUARDED_BY(mutator_) = 0;
  // What forks have copied of a tail.
  int64_t CopiedBytes(SegmentId tail) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutator_) {
    return copied_bytes_.first == tail ? copied_bytes_.second : 0;
  }
  std::pair<SegmentId, int64_t> copied_bytes_ ABSL_GUARDED_BY(mutator_) = {0, 0};
  bool synced_ ABSL_GUARDED_BY(mutator_) = false;  // the last commit was
  std::atomic<int64_t> tokens_durable_{0};         // of manifest_, for those who do not wait for a commit
  std::atomic<bool> retired_{false};               // set under mutator_ and commit_mutex_

  mutable Mutex state_mutex_ ABSL_ACQUIRED_AFTER(commit_mutex_);
  std::shared_ptr<const MemoryState> state_ ABSL_GUARDED_BY(state_mutex_);
};

// The index of the next token as `manifest` has it.
int64_t TokensOf(const MemoryManifest& manifest);

// "busy" for a second call that changes a memory.
absl::Status BusyError(absl::string_view name);

}  // namespace mneme

#endif  // MNEME_MEMORY_MEMORY_H_
