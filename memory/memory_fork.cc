// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "memory/memory.h"
#include "memory/segment/segment_writer.h"

namespace mneme {
namespace {

// Forks copy at most so much of one tail; to seal it costs less than to write more twice.
constexpr int64_t kMaxCopiedBytes = int64_t{1} << 20;

}  // namespace

absl::StatusOr<std::shared_ptr<Memory>> Memory::Fork(const std::string& name, int64_t at_token) {
  TryMutexLock lock(&mutator_);
  if (!lock.held()) return BusyError(name_);
  MNEME_RETURN_IF_ERROR(CheckWritable());
  const std::shared_ptr<const MemoryState> now = state();
  const int64_t end = now->WholeEnd();
  if (at_token < 0 || at_token > end) {
    return absl::OutOfRangeError(absl::StrCat("at_token: expected 0 to ", end, " (the next token), got ", at_token));
  }
  // A few rows of the tail are copied as log records. More rows, or a few time and again, are sealed and shared.
  const int64_t tail_bytes = (at_token - now->tail_first) * TokenBytes(card_, options_.stored_dtype);
  const bool seal =
      at_token - now->tail_first >= kChunkRows || tail_bytes > kMaxCopiedBytes - CopiedBytes(now->tail->id());
  if (!seal && tail_bytes > 0) MNEME_RETURN_IF_ERROR(store_->CheckDiskBudget(tail_bytes));
  MNEME_RETURN_IF_ERROR(CommitWithRetry({.seal_whole_tail = seal}));
  MNEME_RETURN_IF_ERROR(MergeIfMany());

  // Held until the references of the fork are counted: no index build may replace what this manifest names before.
  MutexLock commit_lock(&commit_mutex_);
  MemoryManifest manifest = ManifestOfFork(name, at_token);
  const std::unique_ptr<Transaction> transaction = store_->database().Begin();
  const std::shared_ptr<const MemoryState> committed = state();
  if (const int64_t copied = at_token - committed->tail_first; copied > 0) {
    const SegmentId id = store_->database().NewSegmentId();
    MNEME_RETURN_IF_ERROR(WriteLogs(*transaction, card_, options_.stored_dtype, *committed->tail, 0, copied, id, 0));
    manifest.segments.push_back({id, committed->tail_first, copied, 0, false});
    copied_bytes_ = {committed->tail->id(), CopiedBytes(committed->tail->id()) + tail_bytes};
  }
  MNEME_RETURN_IF_ERROR(transaction->PutManifest(manifest));
  // All that can fail comes before the commit.
  MNEME_ASSIGN_OR_RETURN(std::shared_ptr<Memory> fork, Load(store_, manifest));
  ManifestSwap swap(&store_->segments(), nullptr, &manifest);
  MNEME_RETURN_IF_ERROR(transaction->Commit(Durability::kBuffered));
  swap.Replaced();
  return fork;
}

MemoryManifest Memory::ManifestOfFork(const std::string& name, int64_t at_token) const {
  MemoryManifest fork = manifest_;
  fork.name = name;
  fork.generation = 1;
  fork.first_kept = std::min(fork.first_kept, at_token);
  std::erase_if(fork.segments, [&](const SegmentRef& ref) { return ref.first_token >= at_token || !ref.sealed; });
  for (SegmentRef& ref : fork.segments) {
    ref.rows = std::min(ref.rows, at_token - ref.first_token);
    ref.chunked_rows = ref.rows;
  }
  std::erase_if(fork.attachments, [&](const AttachmentRef& ref) { return ref.tokens > at_token; });
  std::erase_if(fork.indexes, [&](const IndexRef& ref) { return ref.first_token + ref.tokens > at_token; });
  return fork;
}

}  // namespace mneme
