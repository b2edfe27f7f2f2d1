// SPDX-License-Identifier: Apache-2.0
// Tokens that leave a memory: eviction of the oldest, with the disk that it frees, and truncation of the newest.

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "memory/device/mirror.h"
#include "memory/memory.h"
#include "memory/segment/segment_writer.h"

namespace mneme {

absl::Status Memory::Evict(int64_t keep_tokens) {
  const absl::Status status = LockAndEvict(keep_tokens);
  store_->segments().FreeDropped(SegmentRegistry::Urgency::kWhenWorthwhile);
  return status;
}

absl::Status Memory::LockAndEvict(int64_t keep_tokens) {
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
  const int64_t first_kept = now->HeldBelow(end) > keep_tokens ? end - (keep_tokens - pinned) : now->first_kept;
  MNEME_RETURN_IF_ERROR(CommitWithRetry({.first_kept = first_kept}));
  Try("evicted rows stay on disk for now",
      [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return RewriteEvicted(Rewrite::kHalfEvicted); });
  return absl::OkStatus();
}

absl::Status Memory::EvictFrom(MemoryState& state, int64_t first_kept, bool* cut) const {
  const bool evicts_more = first_kept > state.first_kept;
  state.first_kept = first_kept;
  const int64_t evicted = first_kept - state.tail_first;
  *cut =
      evicts_more && state.pinned_tokens <= state.tail_first && evicted > 0 && 2 * evicted >= state.tail->WholeRows();
  if (!*cut) return absl::OkStatus();
  std::shared_ptr<Segment> tail = NewTail();
  MNEME_RETURN_IF_ERROR(CopyRows(card_, *state.tail, evicted, std::numeric_limits<int64_t>::max(), *tail));
  store_->segments().Add(tail);
  state.tail = std::move(tail);
  state.tail_first = first_kept;
  return absl::OkStatus();
}

absl::Status Memory::RewriteEvicted(Rewrite which) {
  const std::shared_ptr<const MemoryState> now = state();
  std::vector<SegmentView> views;
  bool changed = false;
  const std::unique_ptr<Transaction> transaction = store_->database().Begin();
  for (const SegmentView& view : now->sealed) {
    // Rows [pinned, kept) of the view are evicted.
    const int64_t pinned = std::clamp<int64_t>(now->pinned_tokens - view.first_token, 0, view.rows);
    const int64_t kept = std::clamp<int64_t>(now->first_kept - view.first_token, pinned, view.rows);
    const bool half_evicted = 2 * (kept - pinned) >= view.rows;
    if (!half_evicted || (which == Rewrite::kPinnedRest && kept < view.rows)) {
      views.push_back(view);
      continue;
    }
    changed = true;
    for (const auto& [begin, end] : {std::pair(int64_t{0}, pinned), std::pair(kept, view.rows)}) {
      if (begin == end) continue;
      const RowsToCopy source = {.segment = view.segment.get(), .begin = begin, .end = end};
      MNEME_ASSIGN_OR_RETURN(SegmentView copy, WriteSealedSegment(absl::MakeConstSpan(&source, 1),
                                                                  view.first_token + begin, *transaction));
      views.push_back(std::move(copy));
    }
  }
  return changed ? ReplaceSealed(std::move(views), *transaction) : absl::OkStatus();
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
  if (tokens > now->tail_first) {
    MNEME_RETURN_IF_ERROR(CopyRows(card_, *now->tail, 0, tokens - now->tail_first, *tail));
  }
  store_->segments().Add(tail);
  uint64_t epoch;
  {
    MutexLock state_lock(&state_mutex_);
    auto next = std::make_shared<MemoryState>(*state_);
    // From here on nothing fails.
    tail_on_disk_ = {};
    epoch = ++next->epoch;
    next->tail = std::move(tail);
    next->tail_first = std::min(tokens, next->tail_first);
    next->first_kept = std::min(next->first_kept, tokens);
    std::erase_if(next->sealed, [&](const SegmentView& view) { return view.first_token >= tokens; });
    for (SegmentView& view : next->sealed) view.rows = std::min(view.rows, tokens - view.first_token);
    std::erase_if(next->runs, [&](const auto& run) { return run->end() > tokens; });
    std::erase_if(next->attachments, [&](const Attachment& attachment) { return attachment.ref.tokens > tokens; });
    state_ = std::move(next);
  }
  // Until this call the device refuses snapshots of the new epoch.
  if (mirror_ != nullptr) mirror_->Truncate(tokens, epoch);
  return absl::OkStatus();
}

}  // namespace mneme
