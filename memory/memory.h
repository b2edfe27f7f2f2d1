// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_MEMORY_H_
#define MNEME_MEMORY_MEMORY_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

#include "base/mutex.h"
#include "base/tensor.h"
#include "memory/memory_state.h"
#include "memory/progress.h"
#include "memory/seed_cache.h"
#include "memory/store_context.h"
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
  int64_t attachment_bytes = 0;
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

// One memory: sealed segments and a growing tail. The store and its users own it jointly; its StoreContext outlives it.
//
// Threads: readers (TakeSnapshot, Info, Read, attend) run at any time. Functions that change the memory return Aborted
// ("busy") while another of them runs. Locks are taken in the order mutator_, commit_mutex_, state_mutex_.
class Memory : public std::enable_shared_from_this<Memory> {
 public:
  // Makes a memory from its manifest. Reads nothing else.
  // Errors: DataLoss if the manifest contradicts itself; those of ParseIndexSpec.
  static absl::StatusOr<std::shared_ptr<Memory>> Load(StoreContext* store, const MemoryManifest& manifest);
  ~Memory();

  const std::string& name() const { return name_; }
  const ModelCard& card() const { return card_; }
  const MemoryOptions& options() const { return options_; }
  StoreContext& context() const { return *store_; }

  // Appends rows of one layer; readers see them when it returns. An append beyond the bound evicts the oldest tokens.
  // keys [n, kv_heads, key_dim], values [n, kv_heads, value_dim]; positions and token_ids [n] or null.
  // Errors: InvalidArgument (shapes, numbers that cannot be stored, positions that differ from another layer's).
  absl::Status Append(int32_t layer, const RowTensor& keys, const RowTensor& values, const int64_t* positions,
                      const int32_t* token_ids);
  // Makes all whole tokens durable, then seals, merges and indexes what is due. tokens_durable may be null.
  absl::Status Commit(Durability durability, int64_t* tokens_durable);
  // Forgets the tokens from `tokens` on. Durable with the next commit.
  absl::Status Truncate(int64_t tokens);
  // Evicts the oldest tokens that are not pinned until keep_tokens are left, and commits.
  absl::Status Evict(int64_t keep_tokens);
  // Commits, merges and builds indices, whether or not a commit would do it now. `progress` counts rows.
  absl::Status Maintain(const Progress& progress);
  // Commits (and seals, if at_token lies in the tail) this memory, then makes a durable memory `name` of its first
  // at_token tokens.
  // Requires: no memory of the store has that name.
  absl::StatusOr<std::shared_ptr<Memory>> Fork(const std::string& name, int64_t at_token);
  // Closes the memory: nothing can change it from now on, and a build in the background writes nothing for it.
  absl::Status Retire();

  // Returns: what a reader sees now. It is allocated from `resource`, which outlives it; copies of it are not.
  Snapshot TakeSnapshot(std::pmr::memory_resource* resource = std::pmr::get_default_resource()) const;
  MemoryInfo Info() const;
  // Returns: the RAM of this object without its segments and indices.
  int64_t OwnBytes() const;
  // Errors: OutOfRange; DataLoss; those of Database.
  absl::Status Read(const ReadRequest& request) const;

  // Keeps bytes under a name, in place of what it had before; nullopt: removes it. They describe the first `tokens`
  // tokens, and truncation below that removes them. Durable with the next commit.
  // Requires: at most 1 GiB.
  // Errors: InvalidArgument (name); OutOfRange (tokens); ResourceExhausted (too many).
  absl::Status SetAttachment(absl::string_view name, std::optional<absl::string_view> bytes, int64_t tokens);
  // Errors: NotFound; DataLoss if the bytes are damaged.
  absl::StatusOr<std::pair<AttachmentRef, std::string>> GetAttachment(absl::string_view name) const;
  absl::StatusOr<AttachmentRef> DescribeAttachment(absl::string_view name) const;
  // By name.
  std::vector<AttachmentRef> Attachments() const;

  // Builds the indices that sealed segments are due, and drops those that they replace. Called by Commit or by the
  // store's background thread. `progress` counts rows.
  absl::Status BuildIndexes(const Progress& progress);

  // What searches of this memory share.
  SeedCache& seed_cache() { return seed_cache_; }
  // The copies of rows on the store's device. Null: there is no device, or an index is wanted, or the rows' kind or
  // shape does not fit there.
  MemoryMirror* mirror() const { return mirror_.get(); }

  // Writes the f32 keys [tokens, key_dim] of tokens [first, first + tokens) of one layer and head. Tokens of `state`
  // that are not sealed, or evicted, are zero.
  absl::Status DecodeKeys(const MemoryState& state, size_t layer, int32_t head, int64_t first, int64_t tokens,
                          float* keys) const;

 private:
  // Rows of the tail that the database holds; the first `chunked` of them in chunks.
  struct TailOnDisk {
    int64_t rows = 0;
    int64_t chunked = 0;
  };
  struct CommitRequest {
    static constexpr int64_t kEvictNothing = -1;

    Durability durability = Durability::kBuffered;
    bool seal_whole_tail = false;        // the tail's whole rows become a sealed segment even if they fill no chunk
    int64_t first_kept = kEvictNothing;  // tokens before it (but pinned ones) are evicted with the commit
  };
  struct CommitPlan;
  // Rows [begin, end) of a segment, to be copied into another one.
  struct RowsToCopy {
    Segment* segment = nullptr;
    int64_t begin = 0;
    int64_t end = 0;
  };
  enum class BuildOutcome { kBuilt, kRefused, kTruncated, kRetired };

  Memory(StoreContext* store, const MemoryManifest& manifest, IndexSpec spec);

  // memory.cc
  std::shared_ptr<const MemoryState> state() const {
    MutexLock lock(&state_mutex_);
    return state_;
  }
  // Cannot fail: what `next` needs is allocated before anything becomes durable or visible.
  void SetState(std::shared_ptr<const MemoryState> next) noexcept {
    MutexLock lock(&state_mutex_);
    state_.swap(next);
  }
  // The parts of Load.
  absl::Status AddSegments(const MemoryManifest& manifest, MemoryState& state);
  void AddRuns(const MemoryManifest& manifest, MemoryState& state);
  void MakeMirror();
  std::shared_ptr<Segment> NewTail() const;
  std::shared_ptr<IndexRun> NewRun(IndexId id, int64_t first_token, int64_t tokens, IndexSpec spec) const;
  absl::Status CheckWritable() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutator_);
  bool WantsIndexes() const { return spec_.kind != IndexKind::kAuto && spec_.kind != IndexKind::kScan; }
  // Does work that only makes room or speed for rows that are durable already: its error is logged.
  void Try(absl::string_view doing, absl::FunctionRef<absl::Status()> work) const noexcept;

  // memory_append.cc
  // Brings the token columns of rows [row, row + n) that the tail lacks into new_positions_ and new_ids_, with room for
  // them in the tail; checks the others against what the tail has. *unusual: a new position differs from its index.
  absl::Status PrepareColumns(const MemoryState& state, int64_t row, int64_t n, const int64_t* positions,
                              const int32_t* token_ids, bool* unusual) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutator_);
  // Shows n rows of a layer that FillRows and PrepareColumns have prepared, and evicts tokens beyond the bound. Shows
  // nothing if it throws std::bad_alloc. now: the present state.
  void ShowRows(const MemoryState& now, size_t layer, int64_t n, bool unusual) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutator_);

  // memory_commit.cc: LockAndCommit takes the mutator lock, CommitWithRetry tries twice, TryCommit plans and writes.
  absl::Status LockAndCommit(Durability durability, int64_t* tokens_durable, bool* sealed);
  absl::Status CommitWithRetry(const CommitRequest& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutator_);
  absl::Status TryCommit(const CommitRequest& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutator_);
  absl::StatusOr<CommitPlan> PlanCommit(const CommitRequest& request)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutator_, commit_mutex_);
  absl::Status CheckCommitFits(const CommitPlan& plan) const;
  absl::Status WriteTail(const CommitPlan& plan, Transaction& transaction) const;
  absl::Status WriteAttachments(const CommitPlan& plan, Transaction& transaction) const;
  void FinishCommit(const CommitPlan& plan) noexcept ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutator_, commit_mutex_);
  // Returns: the manifest of `state` but for its tail.
  MemoryManifest ManifestOf(const MemoryState& state) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(commit_mutex_);
  // Commits `transaction` with `next` as the manifest.
  absl::Status PutManifest(MemoryManifest next, Transaction& transaction, Durability durability)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(commit_mutex_);
  // Returns: from how many tokens on a tail is sealed. Disk is freed by whole segments, so a bounded memory has
  // segments that are small beside its bound.
  int64_t SealTokens() const;
  // Writes the codes of a segment's keys, if searches will use them.
  absl::Status WriteSealedCodes(Transaction& transaction, Segment& segment, int64_t rows) const;

  // memory_attachments.cc
  // Errors: InvalidArgument (name); NotFound.
  absl::StatusOr<Attachment> FindAttachment(absl::string_view name) const;
  absl::StatusOr<std::string> ReadAttachment(const Attachment& attachment) const;

  // memory_merge.cc
  // Writes rows as a new sealed segment that starts at `first_token`.
  absl::StatusOr<SegmentView> WriteSealedSegment(absl::Span<const RowsToCopy> sources, int64_t first_token,
                                                 Transaction& transaction) const;
  // Commits `views`, whose chunks `transaction` has written, in place of the sealed segments.
  absl::Status ReplaceSealed(std::vector<SegmentView> views, Transaction& transaction)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutator_);
  // Rewrites runs of small segments, which forks and reopened tails leave, as one segment each. Sizes grow
  // geometrically, so a row is rewritten O(log N) times.
  absl::Status MergeSmallSegments() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutator_);
  absl::Status MergeIfMany() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutator_);

  // memory_evict.cc
  absl::Status LockAndEvict(int64_t keep_tokens);
  // Evicts tokens before first_kept from a state that no reader sees yet. *cut: at least half of the tail was evicted
  // and nothing in it is pinned, so a new tail has the rest.
  absl::Status EvictFrom(MemoryState& state, int64_t first_kept, bool* cut) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutator_);
  // Which segments with evicted rows are rewritten to free disk.
  enum class Rewrite {
    kHalfEvicted,  // those with at least half of their rows evicted: a row is rewritten O(log N) times
    kPinnedRest,   // of these only the ones that have nothing left but pinned rows
  };
  absl::Status RewriteEvicted(Rewrite which) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutator_);

  // memory_fork.cc
  // Returns: the bytes of a tail that forks have copied so far.
  int64_t CopiedBytes(SegmentId tail) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutator_) {
    return copied_bytes_.first == tail ? copied_bytes_.second : 0;
  }
  // Returns: the manifest of a fork, without rows of the tail.
  MemoryManifest ManifestOfFork(const std::string& name, int64_t at_token) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(commit_mutex_);

  // memory_index.cc
  // Returns: the planned ranges that have no index of the wanted kind in `state`.
  std::vector<TokenRange> RangesToIndex(const MemoryState& state) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(build_mutex_);
  absl::StatusOr<BuildOutcome> BuildRun(const MemoryState& state, IndexRun& run, const Progress& progress,
                                        int64_t* rows_done, int64_t rows_due)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(build_mutex_);
  // Makes a built run durable, then visible; calls on_durable in between. Does nothing more once the memory was
  // truncated after `epoch`, since its tokens may be others.
  absl::StatusOr<BuildOutcome> PublishRun(const std::shared_ptr<IndexRun>& run, uint64_t epoch,
                                          absl::FunctionRef<void()> on_durable);

  SeedCache seed_cache_;
  std::unique_ptr<MemoryMirror> mirror_;  // constant since Load

  StoreContext* const store_;
  const std::string name_;
  const ModelCard card_;
  const MemoryOptions options_;
  const IndexSpec spec_;

  Mutex mutator_;                                            // held by the one call that changes the memory
  std::vector<float> row_buffer_ ABSL_GUARDED_BY(mutator_);  // Append's, kept between calls, as the next two
  std::vector<int64_t> new_positions_ ABSL_GUARDED_BY(mutator_);
  std::vector<int32_t> new_ids_ ABSL_GUARDED_BY(mutator_);
  TailOnDisk tail_on_disk_ ABSL_GUARDED_BY(mutator_);
  std::pair<SegmentId, int64_t> copied_bytes_ ABSL_GUARDED_BY(mutator_) = {0, 0};  // see CopiedBytes
  bool synced_ ABSL_GUARDED_BY(mutator_) = false;  // the last commit survives power loss

  Mutex build_mutex_;  // held by the one index build; taken before commit_mutex_
  std::vector<TokenRange> not_indexable_ ABSL_GUARDED_BY(build_mutex_);  // the index kind refused them: scanned

  mutable Mutex commit_mutex_ ABSL_ACQUIRED_AFTER(mutator_);  // held while a manifest is written
  MemoryManifest manifest_ ABSL_GUARDED_BY(commit_mutex_);    // as last committed
  std::atomic<int64_t> tokens_durable_{0};                    // of manifest_; readers do not wait for a commit
  std::atomic<bool> retired_{false};                          // set with mutator_ and commit_mutex_ held

  mutable Mutex state_mutex_ ABSL_ACQUIRED_AFTER(commit_mutex_);
  std::shared_ptr<const MemoryState> state_ ABSL_GUARDED_BY(state_mutex_);
};

// Returns: the index of the next token of a manifest.
int64_t TokensOf(const MemoryManifest& manifest);

// Returns: the error of a second call that changes a memory.
absl::Status BusyError(absl::string_view name);

}  // namespace mneme

#endif  // MNEME_MEMORY_MEMORY_H_
