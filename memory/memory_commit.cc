// SPDX-License-Identifier: Apache-2.0
// Commit of a memory: all whole tokens become durable together. LockAndCommit takes the mutator lock, CommitWithRetry
// tries twice, and TryCommit plans what the next manifest names, writes the rows, then the manifest.

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "memory/memory.h"
#include "memory/segment/code_columns.h"
#include "memory/segment/segment_writer.h"

namespace mneme {
namespace {

// A bounded memory is sealed in about this many segments: evicted rows hold at most one of them on disk.
constexpr int64_t kSegmentsWithinBound = 16;

}  // namespace

// What one attempt writes, and what readers see once that is durable.
struct Memory::CommitPlan {
  std::shared_ptr<MemoryState> state;  // the next state
  MemoryManifest manifest;             // the next manifest
  std::shared_ptr<Segment> tail;       // the tail whose rows are committed
  std::shared_ptr<Segment> next_tail;  // null: the tail is not sealed
  std::shared_ptr<Segment> sealed;     // null: the tail is not sealed
  TailOnDisk on_disk;                  // rows of `tail` that the database holds already
  int64_t rows = 0;                    // rows of `tail` that the commit makes durable
  int64_t chunked = 0;                 // of these, the first that lie in chunks then; sealed if the tail is
  bool evicts = false;

  bool seals() const { return next_tail != nullptr; }
};

int64_t Memory::SealTokens() const {
  if (options_.max_tokens == 0) return options_.segment_tokens;
  const int64_t share = (options_.max_tokens / kSegmentsWithinBound + kChunkRows - 1) / kChunkRows * kChunkRows;
  return std::clamp(share, kChunkRows, options_.segment_tokens);
}

absl::Status Memory::WriteSealedCodes(Transaction& transaction, Segment& segment, int64_t rows) const {
  // An index, where one is wanted, soon answers for sealed rows and ranks by exact keys.
  return WantsIndexes() ? absl::OkStatus() : WriteCodes(transaction, card_, segment, rows);
}

absl::Status Memory::Commit(Durability durability, int64_t* tokens_durable) {
  bool sealed = false;
  const absl::Status status = LockAndCommit(durability, tokens_durable, &sealed);
  // Now that LockAndCommit has returned, this call holds none of the segments that it dropped.
  store_->segments().FreeDropped(SegmentRegistry::Urgency::kWhenWorthwhile);
  MNEME_RETURN_IF_ERROR(status);
  if (!sealed || !WantsIndexes()) return absl::OkStatus();
  // An index that cannot be built costs only speed.
  Try("indices", [this]() -> absl::Status {
    if (!store_->options().background) return BuildIndexes(nullptr);
    store_->background_thread()->Schedule([weak = weak_from_this()](const std::function<bool()>& keep_going) {
      const std::shared_ptr<Memory> memory = weak.lock();
      if (memory == nullptr) return;
      memory->Try("indices", [&] {
        absl::Status status = memory->BuildIndexes([&](int64_t, int64_t) { return keep_going(); });
        // The thread stops only with its store.
        if (!absl::IsCancelled(status)) return status;
        return absl::CancelledError(
            "the store was closed during the build; the next commit that seals, or maintenance, builds what is "
            "missing");
      });
    });
    return absl::OkStatus();
  });
  return absl::OkStatus();
}

absl::Status Memory::LockAndCommit(Durability durability, int64_t* tokens_durable, bool* sealed) {
  TryMutexLock lock(&mutator_);
  if (!lock.held()) return BusyError(name_);
  MNEME_RETURN_IF_ERROR(CheckWritable());
  const std::shared_ptr<const MemoryState> before = state();
  MNEME_RETURN_IF_ERROR(CommitWithRetry({.durability = durability}));
  if (tokens_durable != nullptr) *tokens_durable = before->WholeEnd();
  *sealed = state()->tail != before->tail;
  // The tokens are durable: what follows costs only room and speed if it fails.
  Try("evicted rows stay on disk for now",
      [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return RewriteEvicted(Rewrite::kPinnedRest); });
  Try("small segments are not merged for now", [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return MergeIfMany(); });
  return absl::OkStatus();
}

absl::Status Memory::CommitWithRetry(const CommitRequest& request) {
  const absl::Status status = TryCommit(request);
  // Aborted: the database has to be opened again, which the next transaction does. All rows are still in RAM.
  return absl::IsAborted(status) ? TryCommit(request) : status;
}

absl::Status Memory::TryCommit(const CommitRequest& request) {
  MutexLock commit_lock(&commit_mutex_);
  MNEME_ASSIGN_OR_RETURN(CommitPlan plan, PlanCommit(request));
  const bool changes_nothing = plan.manifest == manifest_ && plan.rows == plan.on_disk.rows;
  if (changes_nothing && (request.durability == Durability::kBuffered || synced_)) return absl::OkStatus();
  MNEME_RETURN_IF_ERROR(CheckCommitFits(plan));
  const std::unique_ptr<Transaction> transaction = store_->database().Begin();
  MNEME_RETURN_IF_ERROR(WriteTail(plan, *transaction));
  MNEME_RETURN_IF_ERROR(WriteAttachments(plan, *transaction));
  if (plan.seals()) {
    plan.sealed = plan.tail->SealAt(plan.chunked);
    plan.state->sealed.push_back({plan.sealed, plan.state->tail_first, plan.chunked});
    plan.state->tail = plan.next_tail;
    plan.state->tail_first += plan.chunked;
  }
  MNEME_RETURN_IF_ERROR(PutManifest(std::move(plan.manifest), *transaction, request.durability));
  synced_ = request.durability == Durability::kSynced;
  FinishCommit(plan);
  return absl::OkStatus();
}

absl::StatusOr<Memory::CommitPlan> Memory::PlanCommit(const CommitRequest& request) {
  CommitPlan plan;
  // With commit_mutex_ held, no index build can publish runs that this state lacks.
  plan.state = std::make_shared<MemoryState>(*state());
  MemoryState& next = *plan.state;
  plan.evicts = request.first_kept != CommitRequest::kEvictNothing;
  bool cut = false;
  if (plan.evicts) MNEME_RETURN_IF_ERROR(EvictFrom(next, request.first_kept, &cut));
  if (!cut) plan.on_disk = tail_on_disk_;

  plan.tail = next.tail;
  plan.rows = plan.tail->WholeRows();
  const int64_t whole_chunks = plan.rows / kChunkRows * kChunkRows;
  const bool seal = request.seal_whole_tail ? plan.rows > 0 : plan.rows >= SealTokens();
  plan.chunked = request.seal_whole_tail ? plan.rows : whole_chunks;
  plan.manifest = ManifestOf(next);
  plan.manifest.generation = manifest_.generation;
  std::vector<SegmentRef>& refs = plan.manifest.segments;
  if (seal) {
    refs.push_back({plan.tail->id(), next.tail_first, plan.chunked, plan.chunked, true});
    plan.next_tail = NewTail();
    MNEME_RETURN_IF_ERROR(
        CopyRows(card_, *plan.tail, plan.chunked, std::numeric_limits<int64_t>::max(), *plan.next_tail));
    store_->segments().Add(plan.next_tail);
    if (const int64_t rest = plan.rows - plan.chunked; rest > 0) {
      refs.push_back({plan.next_tail->id(), next.tail_first + plan.chunked, rest, 0, false});
    }
  } else if (plan.rows > 0) {
    refs.push_back({plan.tail->id(), next.tail_first, plan.rows, plan.chunked, false});
  }
  std::erase_if(next.sealed, [&](const SegmentView& view) { return next.IsEvicted(view); });
  std::erase_if(next.runs, [&](const auto& run) { return run->end() <= next.first_kept; });
  return plan;
}

absl::Status Memory::CheckCommitFits(const CommitPlan& plan) const {
  // A commit that adds nothing is never refused, since it may be the one that frees disk.
  const int64_t new_rows = plan.rows - plan.on_disk.rows;
  int64_t bytes = 0;
  for (const Attachment& attachment : plan.state->attachments) {
    if (attachment.bytes != nullptr) bytes += static_cast<int64_t>(attachment.ref.bytes);
  }
  if (new_rows > 0) {
    bytes += new_rows * TokenBytes(card_, options_.stored_dtype);
    if (plan.seals() && !WantsIndexes()) bytes += CodeBytes(card_, plan.chunked);
  }
  return bytes == 0 || plan.evicts ? absl::OkStatus() : store_->CheckDiskBudget(bytes);
}

absl::Status Memory::WriteTail(const CommitPlan& plan, Transaction& transaction) const {
  const DType dtype = options_.stored_dtype;
  Segment& tail = *plan.tail;
  MNEME_RETURN_IF_ERROR(WriteChunks(transaction, card_, dtype, tail, plan.on_disk.chunked, plan.chunked));
  if (plan.chunked > plan.on_disk.chunked) {
    MNEME_RETURN_IF_ERROR(transaction.DeleteLogs(tail.id(), plan.seals() ? plan.rows : plan.chunked));
  }
  if (!plan.seals()) {
    const int64_t first_logged = std::max(plan.on_disk.rows, plan.chunked);
    return WriteLogs(transaction, card_, dtype, tail, first_logged, plan.rows, tail.id(), 0);
  }
  MNEME_RETURN_IF_ERROR(WriteSealedCodes(transaction, tail, plan.chunked));
  return WriteLogs(transaction, card_, dtype, tail, plan.chunked, plan.rows, plan.next_tail->id(), plan.chunked);
}

absl::Status Memory::WriteAttachments(const CommitPlan& plan, Transaction& transaction) const {
  for (const Attachment& attachment : plan.state->attachments) {
    if (attachment.bytes == nullptr) continue;
    MNEME_RETURN_IF_ERROR(transaction.PutAttachment(attachment.ref.id, *attachment.bytes));
  }
  return absl::OkStatus();
}

void Memory::FinishCommit(const CommitPlan& plan) noexcept {
  if (plan.seals()) {
    store_->segments().ReplaceTail(plan.sealed);
    tail_on_disk_ = {.rows = plan.rows - plan.chunked, .chunked = 0};
    plan.next_tail->SetPersisted(tail_on_disk_.rows, 0);
  } else {
    tail_on_disk_ = {.rows = plan.rows, .chunked = plan.chunked};
    plan.tail->SetPersisted(plan.rows, plan.chunked);
  }
  for (Attachment& attachment : plan.state->attachments) attachment.bytes = nullptr;
  SetState(plan.state);
}

MemoryManifest Memory::ManifestOf(const MemoryState& state) const {
  MemoryManifest next = manifest_;
  next.has_positions = state.has_positions;
  next.has_token_ids = true;
  next.first_kept = state.first_kept;
  next.segments.clear();
  for (const SegmentView& view : state.sealed) {
    if (state.IsEvicted(view)) continue;
    next.segments.push_back({view.segment->id(), view.first_token, view.rows, view.rows, true});
  }
  next.indexes.clear();
  for (const auto& run : state.runs) {
    if (run->end() <= state.first_kept) continue;
    next.indexes.push_back({run->id(), run->first_token(), run->tokens(), FormatIndexSpec(run->spec())});
  }
  next.attachments.clear();
  for (const Attachment& attachment : state.attachments) next.attachments.push_back(attachment.ref);
  return next;
}

absl::Status Memory::PutManifest(MemoryManifest next, Transaction& transaction, Durability durability) {
  next.generation = manifest_.generation + 1;
  MNEME_RETURN_IF_ERROR(transaction.PutManifest(next));
  ManifestSwap swap(&store_->segments(), &manifest_, &next);
  MNEME_RETURN_IF_ERROR(transaction.Commit(durability));
  swap.Replaced();
  manifest_ = std::move(next);
  tokens_durable_ = TokensOf(manifest_);
  return absl::OkStatus();
}

}  // namespace mneme
