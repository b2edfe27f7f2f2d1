// SPDX-License-Identifier: Apache-2.0
// What makes a memory durable and changes its shape: commit with sealing and merging, truncate, evict, fork, index
// builds.

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "memory/device/mirror.h"
#include "memory/memory.h"
#include "memory/segment/code_columns.h"
#include "memory/segment/segment_writer.h"

namespace mneme {
namespace {

// Holds a memory's mutator lock if nobody else does.
class ABSL_SCOPED_LOCKABLE TryMutexLock {
 public:
  explicit TryMutexLock(Mutex* mutex) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex) ABSL_NO_THREAD_SAFETY_ANALYSIS
      : mutex_(mutex),
        held_(mutex->TryLock()) {}
  ~TryMutexLock() ABSL_UNLOCK_FUNCTION() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (held_) mutex_->Unlock();
  }
  bool held() const { return held_; }

 private:
  Mutex* const mutex_;
  const bool held_;
};

// More small segments than this are merged by the next commit, not left for Maintain.
constexpr size_t kManySmallSegments = 16;

// Forks copy at most so much of one tail; beyond that, writing it twice costs more than sealing it.
constexpr int64_t kMostCopiedBytes = int64_t{1} << 20;

// A bounded memory is sealed in about this many segments: so much of its disk at most is held by what is evicted.
constexpr int64_t kSegmentsOfABound = 16;

// Gives back the disk of an index that is not finished or that no manifest came to name.
class UnnamedIndex {
 public:
  UnnamedIndex(Store* store, IndexId id) : store_(store), id_(id) {}
  ~UnnamedIndex() {
    if (named_) return;
    if (const absl::Status status = store_->database().DropIndexes({id_}); !status.ok()) store_->Log(status.message());
  }
  UnnamedIndex(const UnnamedIndex&) = delete;
  UnnamedIndex& operator=(const UnnamedIndex&) = delete;

  void Named() { named_ = true; }

 private:
  Store* const store_;
  const IndexId id_;
  bool named_ = false;
};

bool FullyEvicted(const SegmentView& view, const MemoryState& state) {
  return view.first_token >= state.pinned_tokens && view.end() <= state.first_kept;
}

}  // namespace

int64_t Memory::SealTokens() const {
  if (options_.max_tokens == 0) return options_.segment_tokens;
  const int64_t share = (options_.max_tokens / kSegmentsOfABound + kChunkRows - 1) / kChunkRows * kChunkRows;
  return std::clamp(share, kChunkRows, options_.segment_tokens);
}

absl::Status Memory::WriteSealedCodes(Transaction& transaction, Segment& segment, int64_t rows) const {
  // Where an index is wanted it soon answers for what is sealed, and re-ranks by exact keys.
  return WantsIndexes() ? absl::OkStatus() : WriteCodes(transaction, card_, segment, rows);
}

MemoryManifest Memory::ManifestOf(const MemoryState& state) const {
  MemoryManifest next = manifest_;
  next.has_positions = state.has_positions;
  next.has_token_ids = true;
  next.first_kept = state.first_kept;
  next.segments.clear();
  for (const SegmentView& view : state.sealed) {
    if (FullyEvicted(view, state)) continue;
    next.segments.push_back({view.segment->id(), view.first_token, view.rows, view.rows, true});
  }
  next.indexes.clear();
  for (const auto& run : state.runs) {
    if (run->end() <= state.first_kept) continue;
    next.indexes.push_back({run->id(), run->first_token(), run->tokens(), FormatIndexSpec(run->spec())});
  }
  return next;
}

absl::Status Memory::PutManifest(MemoryManifest next, Transaction& transaction, Durability durability) {
  next.generation = manifest_.generation + 1;
  MNEME_RETURN_IF_ERROR(transaction.PutManifest(next));
  MNEME_RETURN_IF_ERROR(transaction.Commit(durability));
  store_->ManifestReplaced(&manifest_, &next);
  manifest_ = std::move(next);
  tokens_durable_ = TokensOf(manifest_);
  return absl::OkStatus();
}

absl::Status Memory::CommitLocked(Durability durability, bool seal_all, bool may_exceed_budget) {
  const absl::Status status = CommitOnce(durability, seal_all, may_exceed_budget);
  // The database has to be opened again, which the next transaction does; all rows are still in memory.
  return absl::IsAborted(status) ? CommitOnce(durability, seal_all, may_exceed_budget) : status;
}

absl::Status Memory::CommitOnce(Durability durability, bool seal_all, bool may_exceed_budget) {
  ReleasableMutexLock commit_lock(&commit_mutex_);
  // Read under the lock: index builds publish their runs under it.
  const std::shared_ptr<const MemoryState> now = state();
  Segment& tail = *now->tail;
  const DType dtype = options_.stored_dtype;
  const int64_t whole = tail.WholeRows();
  const int64_t chunk_end = whole / kChunkRows * kChunkRows;
  const bool seal = seal_all ? whole > 0 : whole >= SealTokens();
  const int64_t seal_rows = !seal ? 0 : seal_all ? whole : chunk_end;
  const int64_t chunks_until = seal ? seal_rows : chunk_end;

  std::shared_ptr<Segment> sealed, next_tail;
  MemoryManifest next = ManifestOf(*now);
  if (seal) {
    next.segments.push_back({tail.id(), now->tail_first, seal_rows, seal_rows, true});
  } else if (whole > 0) {
    next.segments.push_back({tail.id(), now->tail_first, whole, chunks_until, false});
  }
  if (seal) {
    next_tail = NewTail();
    MNEME_RETURN_IF_ERROR(CopyRows(card_, tail, seal_rows, std::numeric_limits<int64_t>::max(), *next_tail));
    if (whole > seal_rows) {
      next.segments.push_back({next_tail->id(), now->tail_first + seal_rows, whole - seal_rows, 0, false});
    }
  }
  next.generation = manifest_.generation;
  const bool nothing_new = next == manifest_ && whole == tail_persisted_;
  if (nothing_new && (durability == Durability::kBuffered || synced_)) return absl::OkStatus();

  // What adds no rows is never refused: it may be what makes room.
  if (whole > tail_persisted_ && !may_exceed_budget) {
    const int64_t code_bytes = seal && !WantsIndexes() ? CodeBytes(card_, seal_rows) : 0;
    MNEME_RETURN_IF_ERROR(store_->CheckDiskBudget((whole - tail_persisted_) * TokenBytes(card_, dtype) + code_bytes));
  }
  const std::unique_ptr<Transaction> transaction = store_->database().Begin();
  MNEME_RETURN_IF_ERROR(WriteChunks(*transaction, card_, dtype, tail, tail_chunked_, chunks_until));
  if (chunks_until > tail_chunked_) {
    MNEME_RETURN_IF_ERROR(transaction->DeleteLogs(tail.id(), seal ? whole : chunks_until));
  }
  if (seal) {
    MNEME_RETURN_IF_ERROR(WriteSealedCodes(*transaction, tail, seal_rows));
    MNEME_RETURN_IF_ERROR(WriteLogs(*transaction, card_, dtype, tail, seal_rows, whole, next_tail->id(), seal_rows));
  } else {
    MNEME_RETURN_IF_ERROR(
        WriteLogs(*transaction, card_, dtype, tail, std::max(tail_persisted_, chunks_until), whole, tail.id(), 0));
  }
  MNEME_RETURN_IF_ERROR(PutManifest(std::move(next), *transaction, durability));
  synced_ = durability == Durability::kSynced;
  if (seal) {
    sealed = tail.SealAt(seal_rows);
    store_->RegisterSegment(sealed);
    store_->RegisterSegment(next_tail);
    tail_persisted_ = whole - seal_rows;
    tail_chunked_ = 0;
    next_tail->SetPersisted(tail_persisted_, 0);
  } else {
    tail_persisted_ = whole;
    tail_chunked_ = chunks_until;
    tail.SetPersisted(whole, chunks_until);
  }
  commit_lock.Release();
  UpdateState([&](MemoryState& next) {
    std::erase_if(next.sealed, [&](const SegmentView& view) { return FullyEvicted(view, *now); });
    std::erase_if(next.runs, [&](const auto& run) { return run->end() <= now->first_kept; });
    if (seal) {
      next.sealed.push_back({sealed, now->tail_first, seal_rows});
      next.tail = next_tail;
      next.tail_first = now->tail_first + seal_rows;
    }
  });
  return absl::OkStatus();
}

absl::Status Memory::CommitAndMerge(Durability durability, int64_t* tokens_durable, bool* sealed) {
  TryMutexLock lock(&mutator_);
  if (!lock.held()) return BusyError(name_);
  MNEME_RETURN_IF_ERROR(CheckWritable());
  const std::shared_ptr<const MemoryState> before = state();
  MNEME_RETURN_IF_ERROR(CommitLocked(durability, false));
  if (tokens_durable != nullptr) *tokens_durable = before->WholeEnd();
  *sealed = state()->tail != before->tail;
  GiveBackEvicted(/*wholly=*/true);
  return MergeIfMany();
}

void Memory::GiveBackEvicted(bool wholly) {
  // The commit is made; a disk too full to rewrite on costs nothing but the disk.
  if (const absl::Status status = RewriteEvicted(wholly); !status.ok()) {
    store_->Log(absl::StrCat("memory \"", name_, "\": evicted rows stay on disk for now: ", status.message()));
  }
}

absl::Status Memory::Commit(Durability durability, int64_t* tokens_durable) {
  bool sealed = false;
  const absl::Status status = CommitAndMerge(durability, tokens_durable, &sealed);
  // Only now does nobody in here hold the segments that it let go of.
  store_->CollectDropped();
  MNEME_RETURN_IF_ERROR(status);
  if (!sealed || !WantsIndexes()) return absl::OkStatus();
  if (store_->options().background) {
    store_->ScheduleIndexBuild(shared_from_this());
    return absl::OkStatus();
  }
  // The tokens are durable; an index that cannot be built costs speed and nothing else.
  if (const absl::Status status = BuildIndexes(nullptr); !status.ok()) {
    store_->Log(absl::StrCat("indices of memory \"", name_, "\": ", status.message()));
  }
  return absl::OkStatus();
}

absl::Status Memory::MergeIfMany() {
  const std::shared_ptr<const MemoryState> now = state();
  const auto small = std::count_if(now->sealed.begin(), now->sealed.end(),
                                   [&](const SegmentView& view) { return view.rows < SealTokens(); });
  return static_cast<size_t>(small) > kManySmallSegments ? MergeSmallSegments() : absl::OkStatus();
}

absl::Status Memory::MergeSmallSegments() {
  const std::shared_ptr<const MemoryState> now = state();
  const std::vector<SegmentView>& views = now->sealed;
  const int64_t large = SealTokens();
  std::vector<SegmentView> merged;  // newest first
  bool changed = false;
  const std::unique_ptr<Transaction> transaction = store_->database().Begin();
  for (size_t i = views.size(); i > 0;) {
    // Views [first, i) become one: each older one joins while it is not much larger than what follows it.
    size_t first = i - 1;
    int64_t rows = views[first].rows;
    while (first > 0 && views[first - 1].end() == views[first].first_token && views[first - 1].rows < large &&
           views[first - 1].rows <= 2 * rows && rows + views[first - 1].rows <= 2 * large) {
      rows += views[--first].rows;
    }
    if (i - first == 1) {
      merged.push_back(views[first]);
    } else {
      const std::shared_ptr<Segment> joined = NewTail();
      for (size_t view = first; view < i; ++view) {
        MNEME_RETURN_IF_ERROR(CopyRows(card_, *views[view].segment, 0, views[view].rows, *joined));
      }
      MNEME_RETURN_IF_ERROR(WriteChunks(*transaction, card_, options_.stored_dtype, *joined, 0, rows));
      MNEME_RETURN_IF_ERROR(WriteSealedCodes(*transaction, *joined, rows));
      const std::shared_ptr<Segment> sealed = joined->SealAt(rows);
      store_->RegisterSegment(sealed);
      merged.push_back({sealed, views[first].first_token, rows});
      changed = true;
    }
    i = first;
  }
  if (!changed) return absl::OkStatus();
  std::reverse(merged.begin(), merged.end());
  return ReplaceSealed(merged, *transaction);
}

absl::Status Memory::ReplaceSealed(const std::vector<SegmentView>& views, Transaction& transaction) {
  {
    MutexLock lock(&commit_mutex_);
    MemoryState shape = *state();  // with the runs as they are now
    shape.sealed = views;
    MemoryManifest next = ManifestOf(shape);
    if (!manifest_.segments.empty() && !manifest_.segments.back().sealed) {
      next.segments.push_back(manifest_.segments.back());
    }
    MNEME_RETURN_IF_ERROR(PutManifest(std::move(next), transaction, Durability::kBuffered));
    synced_ = false;
  }
  UpdateState([&](MemoryState& next) { next.sealed = views; });
  return absl::OkStatus();
}

absl::StatusOr<SegmentView> Memory::CopyOf(const SegmentView& view, int64_t begin, int64_t end,
                                           Transaction& transaction) const {
  const std::shared_ptr<Segment> copy = NewTail();
  MNEME_RETURN_IF_ERROR(CopyRows(card_, *view.segment, begin, end, *copy));
  MNEME_RETURN_IF_ERROR(WriteChunks(transaction, card_, options_.stored_dtype, *copy, 0, end - begin));
  MNEME_RETURN_IF_ERROR(WriteSealedCodes(transaction, *copy, end - begin));
  const std::shared_ptr<Segment> sealed = copy->SealAt(end - begin);
  store_->RegisterSegment(sealed);
  return SegmentView{sealed, view.first_token + begin, end - begin};
}

absl::Status Memory::RewriteEvicted(bool wholly) {
  const std::shared_ptr<const MemoryState> now = state();
  std::vector<SegmentView> views;
  bool changed = false;
  const std::unique_ptr<Transaction> transaction = store_->database().Begin();
  for (const SegmentView& view : now->sealed) {
    const int64_t pinned = std::clamp<int64_t>(now->pinned_tokens - view.first_token, 0, view.rows);
    const int64_t kept = std::clamp<int64_t>(now->first_kept - view.first_token, pinned, view.rows);
    if (2 * (kept - pinned) < view.rows || (wholly && kept < view.rows)) {
      views.push_back(view);
      continue;
    }
    changed = true;
    if (pinned > 0) {
      MNEME_ASSIGN_OR_RETURN(const SegmentView copy, CopyOf(view, 0, pinned, *transaction));
      views.push_back(copy);
    }
    if (kept < view.rows) {
      MNEME_ASSIGN_OR_RETURN(const SegmentView copy, CopyOf(view, kept, view.rows, *transaction));
      views.push_back(copy);
    }
  }
  return changed ? ReplaceSealed(views, *transaction) : absl::OkStatus();
}

absl::Status Memory::Truncate(int64_t tokens) {
  TryMutexLock lock(&mutator_);
  if (!lock.held()) return BusyError(name_);
  MNEME_RETURN_IF_ERROR(CheckWritable());
  const std::shared_ptr<const MemoryState> now = state();
  const int64_t end = now->WholeEnd();
  if (tokens < 0 || tokens > end) {
    return absl::OutOfRangeError(absl::StrCat("tokens: expected 0 to ", end, " (the next token), got ", tokens));
  }
  std::shared_ptr<Segment> tail = NewTail();
  const int64_t tail_first = std::min(tokens, now->tail_first);
  if (tokens > now->tail_first) {
    MNEME_RETURN_IF_ERROR(CopyRows(card_, *now->tail, 0, tokens - now->tail_first, *tail));
  }
  store_->RegisterSegment(tail);
  tail_persisted_ = 0;
  tail_chunked_ = 0;
  ReleasableMutexLock state_lock(&state_mutex_);
  auto next = std::make_shared<MemoryState>(*state_);
  const uint64_t epoch = ++next->epoch;
  next->tail = std::move(tail);
  next->tail_first = tail_first;
  next->first_kept = std::min(next->first_kept, tokens);
  std::erase_if(next->sealed, [&](const SegmentView& view) { return view.first_token >= tokens; });
  for (SegmentView& view : next->sealed) view.rows = std::min(view.rows, tokens - view.first_token);
  std::erase_if(next->runs, [&](const auto& run) { return run->end() > tokens; });
  state_ = std::move(next);
  state_lock.Release();
  // Until then the device does not answer for the new state: it knows the epoch.
  if (mirror_ != nullptr) mirror_->Truncate(tokens, epoch);
  return absl::OkStatus();
}

absl::Status Memory::Evict(int64_t keep_tokens) {
  const absl::Status status = EvictAndCommit(keep_tokens);
  store_->CollectDropped();
  return status;
}

absl::Status Memory::CutTail(const MemoryState& now, int64_t first_kept) {
  const int64_t evicted = first_kept - now.tail_first;
  if (now.pinned_tokens > now.tail_first || 2 * evicted < now.tail->WholeRows() || evicted <= 0) {
    return absl::OkStatus();
  }
  const std::shared_ptr<Segment> tail = NewTail();
  const absl::Status status = CopyRows(card_, *now.tail, evicted, std::numeric_limits<int64_t>::max(), *tail);
  if (!status.ok()) {
    UpdateState([&](MemoryState& next) { next.first_kept = now.first_kept; });
    return status;
  }
  store_->RegisterSegment(tail);
  tail_persisted_ = 0;
  tail_chunked_ = 0;
  UpdateState([&](MemoryState& next) {
    next.tail = tail;
    next.tail_first = first_kept;
  });
  return absl::OkStatus();
}

absl::Status Memory::EvictAndCommit(int64_t keep_tokens) {
  TryMutexLock lock(&mutator_);
  if (!lock.held()) return BusyError(name_);
  MNEME_RETURN_IF_ERROR(CheckWritable());
  const std::shared_ptr<const MemoryState> now = state();
  const int64_t end = now->WholeEnd();
  const int64_t pinned = std::min(now->pinned_tokens, end);
  if (keep_tokens < pinned) {
    return absl::InvalidArgumentError(
        absl::StrCat("keep_tokens: expected at least the ", pinned, " pinned tokens, got ", keep_tokens));
  }
  const int64_t persisted = tail_persisted_, chunked = tail_chunked_;
  if (now->HeldBelow(end) > keep_tokens) {
    const int64_t first_kept = end - (keep_tokens - pinned);
    UpdateState([&](MemoryState& next) { next.first_kept = first_kept; });
    MNEME_RETURN_IF_ERROR(CutTail(*now, first_kept));
  }
  const absl::Status status = CommitLocked(Durability::kBuffered, false, /*may_exceed_budget=*/true);
  // What is still on disk is still there.
  if (!status.ok()) {
    UpdateState([&](MemoryState& next) {
      next.first_kept = now->first_kept;
      next.tail = now->tail;
      next.tail_first = now->tail_first;
    });
    tail_persisted_ = persisted;
    tail_chunked_ = chunked;
    return status;
  }
  GiveBackEvicted(/*wholly=*/false);
  return absl::OkStatus();
}

absl::Status Memory::ForkTo(const std::string& name, int64_t at_token) {
  TryMutexLock lock(&mutator_);
  if (!lock.held()) return BusyError(name_);
  MNEME_RETURN_IF_ERROR(CheckWritable());
  const std::shared_ptr<const MemoryState> now = state();
  const int64_t end = now->WholeEnd();
  if (at_token < 0 || at_token > end) {
    return absl::OutOfRangeError(absl::StrCat("at_token: expected 0 to ", end, " (the next token), got ", at_token));
  }
  // Few rows of the tail are copied as log records; more, or few time and again, are sealed, so that memories share
  // them.
  const int64_t tail_bytes = (at_token - now->tail_first) * TokenBytes(card_, options_.stored_dtype);
  const bool seal =
      at_token - now->tail_first >= kChunkRows || tail_bytes > kMostCopiedBytes - CopiedBytes(now->tail->id());
  if (!seal && tail_bytes > 0) MNEME_RETURN_IF_ERROR(store_->CheckDiskBudget(tail_bytes));
  MNEME_RETURN_IF_ERROR(CommitLocked(Durability::kBuffered, seal));
  MNEME_RETURN_IF_ERROR(MergeIfMany());

  // Until the child is counted as naming them, no index build may replace what this manifest names.
  MutexLock commit_lock(&commit_mutex_);
  MemoryManifest child = manifest_;
  child.name = name;
  child.generation = 1;
  child.first_kept = std::min(child.first_kept, at_token);
  std::erase_if(child.segments, [&](const SegmentRef& ref) { return ref.first_token >= at_token || !ref.sealed; });
  for (SegmentRef& ref : child.segments) {
    ref.rows = std::min(ref.rows, at_token - ref.first_token);
    ref.chunked_rows = ref.rows;
  }
  std::erase_if(child.indexes, [&](const IndexRef& ref) { return ref.first_token + ref.tokens > at_token; });
  const std::unique_ptr<Transaction> transaction = store_->database().Begin();
  const std::shared_ptr<const MemoryState> committed = state();
  if (const int64_t copied = at_token - committed->tail_first; copied > 0) {
    const SegmentId id = store_->database().NewSegmentId();
    MNEME_RETURN_IF_ERROR(WriteLogs(*transaction, card_, options_.stored_dtype, *committed->tail, 0, copied, id, 0));
    child.segments.push_back({id, committed->tail_first, copied, 0, false});
    copied_bytes_ = {committed->tail->id(), CopiedBytes(committed->tail->id()) + tail_bytes};
  }
  MNEME_RETURN_IF_ERROR(transaction->PutManifest(child));
  MNEME_RETURN_IF_ERROR(transaction->Commit(Durability::kBuffered));
  store_->ManifestReplaced(nullptr, &child);
  return absl::OkStatus();
}

absl::Status Memory::Retire() {
  TryMutexLock lock(&mutator_);
  if (!lock.held()) return BusyError(name_);
  MutexLock commit_lock(&commit_mutex_);
  retired_ = true;
  return absl::OkStatus();
}

absl::Status Memory::Maintain(const Progress& progress) {
  const auto commit_and_merge = [&]() -> absl::Status {
    TryMutexLock lock(&mutator_);
    if (!lock.held()) return BusyError(name_);
    MNEME_RETURN_IF_ERROR(CheckWritable());
    MNEME_RETURN_IF_ERROR(CommitLocked(Durability::kBuffered, false));
    GiveBackEvicted(/*wholly=*/false);
    return MergeSmallSegments();
  };
  const absl::Status status = commit_and_merge();
  store_->CollectDropped(/*all=*/true);
  MNEME_RETURN_IF_ERROR(status);
  return WantsIndexes() ? BuildIndexes(progress) : absl::OkStatus();
}

absl::Status Memory::BuildIndexes(const Progress& progress) {
  MutexLock build_lock(&build_mutex_);
  // An index built across a truncation is not published.
  const std::shared_ptr<const MemoryState> now = state();
  const int64_t sealed_end = now->sealed.empty() ? 0 : now->sealed.back().end();
  // What a planned range still holds, pinned tokens apart: those are always scanned.
  const int64_t first_indexed = std::max(now->pinned_tokens, now->first_kept);
  std::vector<TokenRange> missing;
  int64_t rows_due = 0;
  for (TokenRange range : PlanIndexRuns(sealed_end, options_.segment_tokens)) {
    range.begin = std::max(range.begin, first_indexed);
    // What eviction has left of a range is soon scanned.
    if (range.end - range.begin < options_.segment_tokens / 2) continue;
    if (std::find(not_indexable_.begin(), not_indexable_.end(), range) != not_indexable_.end()) continue;
    const bool there = std::any_of(now->runs.begin(), now->runs.end(), [&](const auto& run) {
      return run->first_token() <= range.begin && run->end() == range.end && run->spec().kind == spec_.kind;
    });
    if (there) continue;
    missing.push_back(range);
    for (const LayerCard& layer : card_.layers) rows_due += layer.kv_heads * (range.end - range.begin);
  }
  int64_t rows_done = 0;
  for (const TokenRange& range : missing) {
    const int64_t tokens = range.end - range.begin;
    auto run = std::make_shared<IndexRun>(store_->database().NewIndexId(), range.begin, tokens, spec_, card_,
                                          &store_->database(), !store_->options().ignore_index_blobs, true,
                                          &store_->index_counters(),
                                          [store = store_](absl::string_view text) { store->Log(text); });
    UnnamedIndex unnamed(store_, run->id());
    absl::Status refused;
    for (size_t layer = 0; layer < card_.layers.size() && refused.ok(); ++layer) {
      for (int32_t head = 0; head < card_.layers[layer].kv_heads && refused.ok(); ++head) {
        if (retired_) return absl::OkStatus();
        if (progress && !progress(rows_done, rows_due))
          return absl::CancelledError("cancelled by its progress callback");
        const absl::Status status = run->Build(layer, head, [&](size_t l, int32_t h, float* keys) {
          return DecodeKeys(*now, l, h, range.begin, tokens, keys);
        });
        if (status.code() == absl::StatusCode::kInvalidArgument) {
          refused = status;
        } else if (!status.ok()) {
          return status;
        }
        rows_done += tokens;
      }
    }
    if (!refused.ok()) {
      // Too few rows to train on, a code size that does not divide the dims, …: the exact scan serves these tokens.
      store_->Log(absl::StrCat("memory \"", name_, "\": tokens ", range.begin, " to ", range.end,
                               " get no index and are scanned: ", refused.message()));
      not_indexable_.push_back(range);
      continue;
    }
    MutexLock commit_lock(&commit_mutex_);
    if (retired_) return absl::OkStatus();
    std::vector<std::shared_ptr<IndexRun>> runs;
    {
      MutexLock lock(&state_mutex_);
      if (state_->epoch != now->epoch) break;  // its tokens may be others by now; the next build sees to it
      runs = state_->runs;
    }
    std::erase_if(runs, [&](const auto& old) {
      return (old->first_token() < range.end && old->end() > range.begin) || old->end() <= manifest_.first_kept;
    });
    runs.push_back(run);
    std::sort(runs.begin(), runs.end(),
              [](const auto& a, const auto& b) { return a->first_token() < b->first_token(); });
    MemoryManifest next = manifest_;
    next.indexes.clear();
    for (const auto& kept : runs) {
      next.indexes.push_back({kept->id(), kept->first_token(), kept->tokens(), FormatIndexSpec(kept->spec())});
    }
    const std::unique_ptr<Transaction> transaction = store_->database().Begin();
    MNEME_RETURN_IF_ERROR(PutManifest(std::move(next), *transaction, Durability::kBuffered));
    unnamed.Named();
    // A truncation cannot have come between: it takes the state's lock only, so look once more.
    MutexLock lock(&state_mutex_);
    if (state_->epoch != now->epoch) break;
    auto next_state = std::make_shared<MemoryState>(*state_);
    next_state->runs = std::move(runs);
    state_ = std::move(next_state);
  }
  if (progress && !progress(rows_due, rows_due)) return absl::CancelledError("cancelled by its progress callback");
  return absl::OkStatus();
}

}  // namespace mneme
