// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_DEVICE_MIRROR_H_
#define MNEME_MEMORY_DEVICE_MIRROR_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "base/model_card.h"
#include "base/mutex.h"
#include "memory/device/device.h"
#include "memory/memory_state.h"

namespace mneme {

// The rows of one memory on a device: copies of what the host holds, made when a call first reads a layer there and by
// each append from then on. A mirror can drop its rows at any time. See "Memories on the device" in docs/design/gpu.md.
//
// The mirror's stream runs the copies. Readers wait for it (Acquire), and it waits for readers (ReleaseAfter). Rows
// that a reader may still see are never overwritten. A call that reads several mirrors locks them in the order of their
// addresses (MirrorLocks).
class MemoryMirror {
 public:
  // Rows of tokens [begin, end) of a snapshot, as the kernels take them.
  struct View {
    cuda::MemoryRows rows;
    int64_t pinned = 0;
    int64_t gap = 0;

    int64_t TokenOf(int64_t row) const { return row < pinned ? row : row + gap; }
  };
  // Rows of one layer in one device buffer: the pinned tokens [0, pinned), then the tokens from `first` on. So row r
  // holds token r, or from `pinned` on token r + gap, gap = first - pinned. Evicted rows stay, hidden.
  struct Block {
    std::unique_ptr<DeviceBuffer> buffer;
    cuda::MemoryRows rows;  // with no row visible
    int64_t first = 0;      // token of row `pinned`
  };
  // For replays of a CUDA graph, which read rows without telling the mirror. While a hold lives, its block stays and
  // the block's first `rows` rows do not change: rows that would overwrite them go to a new block. Before a holder
  // lowers `rows` or drops the hold, it has the stream of the block's buffer wait for its last reader.
  struct RowHold {
    std::shared_ptr<const Block> block;
    std::atomic<int64_t> rows{0};
  };

  // Returns: null if no layer of the card can be mirrored.
  static absl::StatusOr<std::unique_ptr<MemoryMirror>> New(std::shared_ptr<Device> device, const ModelCard& card,
                                                           DType stored, int64_t pinned_tokens);
  ~MemoryMirror();

  // Whether the kernels support rows of this layer's shape and type.
  static bool Supports(const LayerCard& layer, DType stored);

  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex_) { mutex_.Lock(); }
  void Unlock() ABSL_UNLOCK_FUNCTION(mutex_) { mutex_.Unlock(); }

  // Returns: tokens [begin, end) of `layer` in `snapshot`, after queueing copies of what the device lacks. Work that is
  // queued on `stream` from now on may read the rows, until ReleaseAfter. None if the device cannot have them: the
  // budget is spent, or the snapshot is older than a truncation or an eviction that the mirror has followed.
  // Errors: Unavailable if the device failed; errors of the segment's rows.
  absl::StatusOr<std::optional<View>> Acquire(const Snapshot& snapshot, size_t layer, int64_t begin, int64_t end,
                                              void* stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Later copies wait for the work before `event`, which reads acquired rows.
  absl::Status ReleaseAfter(void* event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Has `hold` protect the rows of `view`, which was just acquired. hold: the reader's earlier hold of this layer, or
  // null; replaced if it holds another block.
  void Hold(size_t layer, const View& view, std::shared_ptr<RowHold>& hold) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // After an append: queues copies of a layer's new rows if the device has its other rows. Does not wait.
  void CopyNewRows(const Snapshot& snapshot, size_t layer) ABSL_LOCKS_EXCLUDED(mutex_);
  // After a truncation: states of `epoch` have other tokens from `tokens` on.
  void Truncate(int64_t tokens, uint64_t epoch) ABSL_LOCKS_EXCLUDED(mutex_);
  // Drops all rows after a failure, because it is unknown which of them the device has.
  void Clear() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

 private:
  struct Layer {
    std::shared_ptr<Block> block;
    int64_t rows = 0;           // in the block, copies that are under way included
    int64_t complete_from = 0;  // the block has all kept tokens from here on
    void* ready = nullptr;      // the event behind the copies
    std::vector<std::weak_ptr<const RowHold>> holds;

    // Returns: how many rows of the block must not change.
    int64_t HeldRows() const;
    void Drop() {
      block.reset();
      rows = 0;
    }
  };

  MemoryMirror(std::shared_ptr<Device> device, std::shared_ptr<DeviceStream> stream, const ModelCard& card,
               DType stored, int64_t pinned_tokens);

  int64_t RowOf(const Block& block, int64_t token) const {
    return token <= pinned_ ? token : std::max(pinned_, pinned_ + token - block.first);
  }
  // Queues copies of the rows up to token `end` that the device lacks.
  // Returns: false if the device cannot have them.
  absl::StatusOr<bool> CopyUpTo(const Snapshot& snapshot, size_t layer, int64_t end)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The part of CopyUpTo that adds rows to a block with room for them.
  absl::Status AddRows(const MemoryState& state, size_t layer, int64_t kept, int64_t end)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Replaces the block by one with room for the tokens up to `end`, without the evicted ones before `kept`, and copies
  // the rows that it has. Returns: false if the budget has no room.
  absl::StatusOr<bool> ReplaceBlock(size_t layer, int64_t kept, int64_t end) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Returns: a block for `needed` rows with room to grow, as far as the budget allows; null if it has no room.
  absl::StatusOr<std::shared_ptr<Block>> NewBlockFor(size_t layer, int64_t first, int64_t needed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::shared_ptr<Block>> NewBlock(size_t layer, int64_t first, int64_t capacity)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CopyBlock(size_t layer, const Block& from, int64_t from_row, const Block& to, int64_t to_row, int64_t n)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Queues copies of the host's tokens [begin, end) to the block's rows from `row` on.
  absl::Status Upload(const MemoryState& state, size_t layer, int64_t begin, int64_t end, int64_t row)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The tokens of one segment or tail among them, whose row 0 is token `first_token` and whose tokens end at
  // `owner_end`.
  absl::Status UploadFrom(Segment& owner, int64_t first_token, int64_t owner_end, size_t layer, int64_t begin,
                          int64_t end, int64_t row) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::shared_ptr<Device> device_;  // declared before stream_, which uses its runtime
  const std::shared_ptr<DeviceStream> stream_;
  const std::vector<LayerCard> cards_;
  const DType stored_;
  const int64_t pinned_;

  Mutex mutex_;
  std::vector<Layer> layers_ ABSL_GUARDED_BY(mutex_);
  uint64_t epoch_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_DEVICE_MIRROR_H_
