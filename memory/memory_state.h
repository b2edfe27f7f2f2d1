// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_MEMORY_STATE_H_
#define MNEME_MEMORY_MEMORY_STATE_H_

#include <cstdint>
#include <memory>
#include <memory_resource>
#include <string>
#include <vector>

#include "memory/segment/index_run.h"
#include "memory/segment/segment.h"

namespace mneme {

// Tokens [first_token, first_token + rows) of a memory: the first rows of a sealed segment.
struct SegmentView {
  std::shared_ptr<Segment> segment;
  int64_t first_token = 0;
  int64_t rows = 0;

  int64_t end() const { return first_token + rows; }
};

// Bytes that the host keeps with a memory.
struct Attachment {
  AttachmentRef ref;
  std::shared_ptr<const std::string> bytes;  // null: in the database; else the next commit writes them
};

// All that a reader of a memory needs. Immutable: append (where it evicts), commit, truncate, evict and index builds
// replace it as a whole. Only the tail's rows grow in place, and each reader fixes how many of them it sees.
struct MemoryState {
  std::vector<SegmentView> sealed;  // in token order; gaps only where tokens were evicted
  std::shared_ptr<Segment> tail;
  int64_t tail_first = 0;  // token index of the tail's row 0
  int64_t pinned_tokens = 0;
  int64_t first_kept = 0;      // tokens [pinned_tokens, first_kept) are evicted
  uint64_t epoch = 0;          // truncations so far: tokens of the same index may differ between epochs
  bool has_positions = false;  // some rotary position differs from its token index
  std::vector<std::shared_ptr<IndexRun>> runs;  // in token order, disjoint, over sealed tokens only
  std::vector<Attachment> attachments;          // names differ

  int64_t LayerEnd(size_t layer) const { return tail_first + tail->LayerRows(layer); }
  int64_t WholeEnd() const { return tail_first + tail->WholeRows(); }

  // Returns: how many of the tokens [0, end) are held, not evicted.
  int64_t HeldBelow(int64_t end) const {
    const int64_t evicted_end = first_kept < end ? first_kept : end;
    return end - (evicted_end > pinned_tokens ? evicted_end - pinned_tokens : 0);
  }

  // Returns: whether no token of `view` is held.
  bool IsEvicted(const SegmentView& view) const {
    return view.first_token >= pinned_tokens && view.end() <= first_kept;
  }
};

// What every layer of one step sees.
struct Snapshot {
  std::shared_ptr<const MemoryState> state;
  std::pmr::vector<int64_t> layer_ends;  // by layer of the card: the token index after the newest row
};

}  // namespace mneme

#endif  // MNEME_MEMORY_MEMORY_STATE_H_
