// SPDX-License-Identifier: Apache-2.0
// Index builds of a memory, and its maintenance.

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/out_of_memory.h"
#include "base/status.h"
#include "memory/memory.h"

namespace mneme {
namespace {

// Deletes the blobs of an index that is not finished, or that no manifest names in the end.
class UnpublishedIndex {
 public:
  UnpublishedIndex(StoreContext* store, IndexId id) : store_(store), id_(id) {}
  ~UnpublishedIndex() {
    if (published_) return;
    const absl::Status status =
        CatchExceptions("delete an index", [this] { return store_->database().DropIndexes({id_}); });
    if (!status.ok()) store_->Log(status.message());
  }
  UnpublishedIndex(const UnpublishedIndex&) = delete;
  UnpublishedIndex& operator=(const UnpublishedIndex&) = delete;

  void SetPublished() { published_ = true; }

 private:
  StoreContext* const store_;
  const IndexId id_;
  bool published_ = false;
};

absl::Status CancelledByProgress() {
  return absl::CancelledError("cancelled by its progress callback");
}

}  // namespace

absl::Status Memory::Maintain(const Progress& progress) {
  const auto commit_and_merge = [&]() -> absl::Status {
    TryMutexLock lock(&mutator_);
    if (!lock.held()) return BusyError(name_);
    MNEME_RETURN_IF_ERROR(CheckWritable());
    MNEME_RETURN_IF_ERROR(CommitWithRetry({}));
    Try("evicted rows stay on disk for now",
        [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return RewriteEvicted(Rewrite::kHalfEvicted); });
    return MergeSmallSegments();
  };
  const absl::Status status = commit_and_merge();
  store_->segments().FreeDropped(SegmentRegistry::Urgency::kNow);
  MNEME_RETURN_IF_ERROR(status);
  return WantsIndexes() ? BuildIndexes(progress) : absl::OkStatus();
}

absl::Status Memory::BuildIndexes(const Progress& progress) {
  MutexLock build_lock(&build_mutex_);
  const std::shared_ptr<const MemoryState> now = state();
  const std::vector<TokenRange> ranges = RangesToIndex(*now);
  int64_t rows_done = 0, rows_due = 0;
  for (const TokenRange& range : ranges) {
    for (const LayerCard& layer : card_.layers) rows_due += layer.kv_heads * (range.end - range.begin);
  }
  for (const TokenRange& range : ranges) {
    const std::shared_ptr<IndexRun> run =
        NewRun(store_->database().NewIndexId(), range.begin, range.end - range.begin, spec_);
    UnpublishedIndex unpublished(store_, run->id());
    MNEME_ASSIGN_OR_RETURN(BuildOutcome outcome, BuildRun(*now, *run, progress, &rows_done, rows_due));
    if (outcome == BuildOutcome::kRefused) continue;
    if (outcome == BuildOutcome::kBuilt) {
      MNEME_ASSIGN_OR_RETURN(outcome, PublishRun(run, now->epoch, [&] { unpublished.SetPublished(); }));
    }
    if (outcome == BuildOutcome::kRetired) return absl::OkStatus();
    if (outcome == BuildOutcome::kTruncated) break;  // the next build plans anew
  }
  return progress && !progress(rows_due, rows_due) ? CancelledByProgress() : absl::OkStatus();
}

std::vector<TokenRange> Memory::RangesToIndex(const MemoryState& state) const {
  const int64_t sealed_end = state.sealed.empty() ? 0 : state.sealed.back().end();
  // Pinned tokens are always scanned.
  const int64_t first_indexed = std::max(state.pinned_tokens, state.first_kept);
  std::vector<TokenRange> missing;
  for (TokenRange range : PlanIndexRuns(sealed_end, options_.segment_tokens)) {
    range.begin = std::max(range.begin, first_indexed);
    // A scan of the few tokens that eviction has left of a range is fast.
    if (range.end - range.begin < options_.segment_tokens / 2) continue;
    if (std::find(not_indexable_.begin(), not_indexable_.end(), range) != not_indexable_.end()) continue;
    const bool exists = std::any_of(state.runs.begin(), state.runs.end(), [&](const auto& run) {
      return run->first_token() <= range.begin && run->end() == range.end && run->spec().kind == spec_.kind;
    });
    if (!exists) missing.push_back(range);
  }
  return missing;
}

absl::StatusOr<Memory::BuildOutcome> Memory::BuildRun(const MemoryState& state, IndexRun& run, const Progress& progress,
                                                      int64_t* rows_done, int64_t rows_due) {
  const TokenRange range = {.begin = run.first_token(), .end = run.end()};
  for (size_t layer = 0; layer < card_.layers.size(); ++layer) {
    for (int32_t head = 0; head < card_.layers[layer].kv_heads; ++head) {
      if (retired_) return BuildOutcome::kRetired;
      if (progress && !progress(*rows_done, rows_due)) return CancelledByProgress();
      const absl::Status status = run.Build(layer, head, [&](size_t l, int32_t h, float* keys) {
        return DecodeKeys(state, l, h, range.begin, run.tokens(), keys);
      });
      *rows_done += run.tokens();
      if (absl::IsInvalidArgument(status)) {
        // Too few rows to train on, a code size that does not divide the dims, …: the exact scan serves these tokens.
        store_->Log(absl::StrCat("memory \"", name_, "\": tokens ", range.begin, " to ", range.end,
                                 " get no index and are scanned: ", status.message()));
        not_indexable_.push_back(range);
        return BuildOutcome::kRefused;
      }
      MNEME_RETURN_IF_ERROR(status);
    }
  }
  return BuildOutcome::kBuilt;
}

absl::StatusOr<Memory::BuildOutcome> Memory::PublishRun(const std::shared_ptr<IndexRun>& run, uint64_t epoch,
                                                        absl::FunctionRef<void()> on_durable) {
  MutexLock commit_lock(&commit_mutex_);
  if (retired_) return BuildOutcome::kRetired;
  const std::shared_ptr<const MemoryState> now = state();
  if (now->epoch != epoch) return BuildOutcome::kTruncated;
  std::vector<std::shared_ptr<IndexRun>> runs = now->runs;
  std::erase_if(runs, [&](const auto& old) {
    return (old->first_token() < run->end() && old->end() > run->first_token()) || old->end() <= manifest_.first_kept;
  });
  runs.push_back(run);
  std::sort(runs.begin(), runs.end(), [](const auto& a, const auto& b) { return a->first_token() < b->first_token(); });
  MemoryManifest next = manifest_;
  next.indexes.clear();
  for (const auto& kept : runs) {
    next.indexes.push_back({kept->id(), kept->first_token(), kept->tokens(), FormatIndexSpec(kept->spec())});
  }
  const std::unique_ptr<Transaction> transaction = store_->database().Begin();
  MNEME_RETURN_IF_ERROR(PutManifest(std::move(next), *transaction, Durability::kBuffered));
  on_durable();
  // Truncate takes only the state's lock, so it may have come between.
  MutexLock lock(&state_mutex_);
  if (state_->epoch != epoch) return BuildOutcome::kTruncated;
  auto next_state = std::make_shared<MemoryState>(*state_);
  next_state->runs = std::move(runs);
  state_ = std::move(next_state);
  return BuildOutcome::kBuilt;
}

}  // namespace mneme
