// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_DEVICE_MIRROR_H_
#define MNEME_MEMORY_DEVICE_MIRROR_H_

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
#include "memory/state.h"

namespace mneme {

// The rows of one memory on a device, layer by layer: copies of what the host holds, made when a layer is first
// attended to and followed by each append from then on. The host's rows stay what counts; a mirror can be let go of at
// any time.
//
// A layer's rows are one block: first the pinned tokens [0, pinned), then the tokens from `first` on. So row r stands
// for token r, or from `pinned` on for r + gap, gap = first - pinned; what is evicted stays hidden between them until
// the block is made anew. What readers may still see is never overwritten: rows only follow at the end, and a
// truncation, after which rows come again, is waited for by nobody but the copies that it lets in. Readers that nothing
// tells of, replays of a graph, have what they may see held; where rows come again before it is let go of, they come to
// another block.
//
// Work is ordered by the mirror's own stream: copies run there, readers wait for them, and it waits for readers.
// Between Lock and Unlock; a call that reads several memories locks them in the order of their addresses.
class MemoryMirror {
 public:
  // What a reader is given: the rows as the kernels want them, for tokens [begin, end) of the snapshot.
  struct View {
    cuda::MemoryRows rows;
    int64_t pinned = 0;
    int64_t gap = 0;

    int64_t TokenOf(int64_t row) const { return row < pinned ? row : row + gap; }
  };
  // Rows of one layer in one piece of device memory.
  struct Block {
    std::unique_ptr<DeviceMemory> memory;
    cuda::MemoryRows rows;  // visible: none
    int64_t first = 0;      // token of row `pinned`
  };
  // A block stays while this lives, whatever becomes of the mirror, and its first `rows` rows stay as they are. Who
  // lets go of either has the block's stream wait for the last reader before.
  struct Held {
    std::shared_ptr<const Block> block;
    std::atomic<int64_t> rows{0};
  };

  // Null if no layer of the card can be mirrored.
  static absl::StatusOr<std::unique_ptr<MemoryMirror>> New(std::shared_ptr<Device> device, const ModelCard& card,
                                                           DType stored, int64_t pinned_tokens);
  ~MemoryMirror();

  // Whether rows of this layer's shape can lie on the device.
  static bool Fits(const LayerCard& layer, DType stored);

  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex_) { mutex_.Lock(); }
  void Unlock() ABSL_UNLOCK_FUNCTION(mutex_) { mutex_.Unlock(); }

  // Rows of `layer` in `snapshot`, tokens [begin, end), copied first as far as they are not there yet. What is queued
  // on `stream` from now on may read them, until Release. None if they cannot be had here: the budget is spent, or the
  // snapshot is older than a truncation or than what is kept here. An error of a segment's rows is the host's to
  // report.
  absl::StatusOr<std::optional<View>> Acquire(const Snapshot& snapshot, size_t layer, int64_t begin, int64_t end,
                                              void* stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What was acquired is read by what `event` stands for.
  absl::Status Release(void* event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What was acquired is read until it is let go of. `held`: what the same reader held before, or null; made anew if
  // that is another block.
  void Hold(size_t layer, const View& view, std::shared_ptr<Held>& held) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // New rows of a layer go to the device at once if its others are there; without waiting. Takes the lock.
  void Follow(const Snapshot& snapshot, size_t layer) ABSL_LOCKS_EXCLUDED(mutex_);
  // Tokens from `tokens` on are gone in states of `epoch`. Takes the lock.
  void Truncate(int64_t tokens, uint64_t epoch) ABSL_LOCKS_EXCLUDED(mutex_);
  // Lets go of everything, when something failed on the way: what is there is not known any more. With the lock.
  void Forget() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

 private:
  struct Layer {
    std::shared_ptr<Block> block;
    int64_t rows = 0;           // there, or on their way
    int64_t complete_from = 0;  // of the tokens that are not pinned; what was evicted before it came is not there
    void* ready = nullptr;      // the event behind their copies
    std::vector<std::weak_ptr<const Held>> holds;

    // Rows of the block that must stay as they are.
    int64_t HeldRows() const;
  };

  MemoryMirror(std::shared_ptr<Device> device, std::shared_ptr<DeviceStream> stream, const ModelCard& card,
               DType stored, int64_t pinned_tokens);

  int64_t RowOf(const Block& block, int64_t token) const {
    return token <= pinned_ ? token : std::max(pinned_, pinned_ + token - block.first);
  }
  // Makes rows up to token `end` be there; false if they cannot.
  absl::StatusOr<bool> CatchUp(const Snapshot& snapshot, size_t layer, int64_t end)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // A block with room for tokens up to `end`, of which those before `kept` are left out; takes over what is there.
  // False if the budget has no room.
  absl::StatusOr<bool> MakeRoom(size_t layer, int64_t kept, int64_t end) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::shared_ptr<Block>> NewBlock(size_t layer, int64_t first, int64_t capacity)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CopyBlock(size_t layer, const Block& from, int64_t from_row, const Block& to, int64_t to_row, int64_t n)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Queues copies of the host's tokens [begin, end) to the rows from `row` on.
  absl::Status Upload(const MemoryState& state, size_t layer, int64_t begin, int64_t end, int64_t row)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::shared_ptr<Device> device_;  // outlives the stream
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
