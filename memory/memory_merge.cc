// SPDX-License-Identifier: Apache-2.0
// Sealed segments that are written again: small ones merged into larger ones.

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "memory/memory.h"
#include "memory/segment/segment_writer.h"

namespace mneme {
namespace {

// A commit merges small segments if there are more than this many; else Maintain does.
constexpr size_t kManySmallSegments = 16;

// Returns: the first of the views that end with view `last` and should become one segment. An older view joins while it
// is at most twice as large as what follows it.
size_t FirstToMerge(const std::vector<SegmentView>& views, size_t last, int64_t large) {
  size_t first = last;
  int64_t rows = views[last].rows;
  while (first > 0 && views[first - 1].end() == views[first].first_token && views[first - 1].rows < large &&
         views[first - 1].rows <= 2 * rows && rows + views[first - 1].rows <= 2 * large) {
    rows += views[--first].rows;
  }
  return first;
}

}  // namespace

absl::StatusOr<SegmentView> Memory::WriteSealedSegment(absl::Span<const RowsToCopy> sources, int64_t first_token,
                                                       Transaction& transaction) const {
  const std::shared_ptr<Segment> copy = NewTail();
  int64_t rows = 0;
  for (const RowsToCopy& source : sources) {
    MNEME_RETURN_IF_ERROR(CopyRows(card_, *source.segment, source.begin, source.end, *copy));
    rows += source.end - source.begin;
  }
  MNEME_RETURN_IF_ERROR(WriteChunks(transaction, card_, options_.stored_dtype, *copy, 0, rows));
  MNEME_RETURN_IF_ERROR(WriteSealedCodes(transaction, *copy, rows));
  const std::shared_ptr<Segment> sealed = copy->SealAt(rows);
  store_->segments().Add(sealed);
  return SegmentView{sealed, first_token, rows};
}

absl::Status Memory::ReplaceSealed(std::vector<SegmentView> views, Transaction& transaction) {
  MutexLock lock(&commit_mutex_);
  const auto next = std::make_shared<MemoryState>(*state());  // with the runs as they are now
  next->sealed = std::move(views);
  MemoryManifest manifest = ManifestOf(*next);
  if (!manifest_.segments.empty() && !manifest_.segments.back().sealed) {
    manifest.segments.push_back(manifest_.segments.back());
  }
  MNEME_RETURN_IF_ERROR(PutManifest(std::move(manifest), transaction, Durability::kBuffered));
  synced_ = false;
  SetState(next);
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
  std::vector<SegmentView> merged;  // newest first
  const std::unique_ptr<Transaction> transaction = store_->database().Begin();
  for (size_t end = views.size(); end > 0;) {
    const size_t first = FirstToMerge(views, end - 1, SealTokens());
    if (end - first == 1) {
      merged.push_back(views[first]);
    } else {
      std::vector<RowsToCopy> sources;
      for (size_t i = first; i < end; ++i) sources.push_back({views[i].segment.get(), 0, views[i].rows});
      MNEME_ASSIGN_OR_RETURN(SegmentView view, WriteSealedSegment(sources, views[first].first_token, *transaction));
      merged.push_back(std::move(view));
    }
    end = first;
  }
  if (merged.size() == views.size()) return absl::OkStatus();
  std::reverse(merged.begin(), merged.end());
  return ReplaceSealed(std::move(merged), *transaction);
}

}  // namespace mneme
