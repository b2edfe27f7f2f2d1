// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_SEGMENT_INDEX_RUN_H_
#define MNEME_MEMORY_SEGMENT_INDEX_RUN_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "base/model_card.h"
#include "base/mutex.h"
#include "index/key_index.h"
#include "storage/database.h"

namespace mneme {

struct IndexCounters {
  std::atomic<int64_t> built{0};
  std::atomic<int64_t> loaded{0};
  std::atomic<int64_t> rebuilt{0};  // of the built: because a blob was missing or damaged
};

// Indices, one a layer and KV head, over the rows of tokens [first_token, first_token + tokens) of a memory. Blobs are
// read when first needed; one that is missing or damaged is built again from the rows and reported. Thread-safe.
class IndexRun {
 public:
  // f32 keys [tokens, key_dim] of one layer (its place in the card) and KV head, for building.
  using KeySource = absl::FunctionRef<absl::Status(size_t layer, int32_t head, float* keys)>;

  IndexRun(IndexId id, int64_t first_token, int64_t tokens, IndexSpec spec, const ModelCard& card, Database* database,
           bool trust_blobs, bool may_write, IndexCounters* counters, std::function<void(absl::string_view)> log);

  IndexId id() const { return id_; }
  int64_t first_token() const { return first_token_; }
  int64_t tokens() const { return tokens_; }
  int64_t end() const { return first_token_ + tokens_; }
  const IndexSpec& spec() const { return spec_; }

  absl::StatusOr<std::shared_ptr<const KeyIndex>> Get(size_t layer, int32_t head, KeySource keys);

  // Builds one index and writes its blob.
  absl::Status Build(size_t layer, int32_t head, KeySource keys);

  // Waits for no build.
  size_t MemoryBytes() const { return bytes_; }

 private:
  // Each KV head of each layer for itself: loading one holds up nobody who asks for another.
  struct Head {
    Mutex mutex;
    std::shared_ptr<const KeyIndex> index ABSL_GUARDED_BY(mutex);
  };

  // must_keep: an error if its blob cannot be written.
  absl::StatusOr<std::shared_ptr<const KeyIndex>> BuildLocked(size_t layer, int32_t head, KeySource keys,
                                                              bool must_keep, Head& place)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(place.mutex);
  void Keep(Head& place, std::shared_ptr<const KeyIndex> index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(place.mutex);
  Head& Place(size_t layer, int32_t head) { return heads_[first_of_layer_[layer] + static_cast<size_t>(head)]; }

  const IndexId id_;
  const int64_t first_token_;
  const int64_t tokens_;
  const IndexSpec spec_;
  const std::vector<LayerCard> cards_;
  Database* const database_;
  const bool trust_blobs_;
  const bool may_write_;
  IndexCounters* const counters_;
  const std::function<void(absl::string_view)> log_;
  std::vector<size_t> first_of_layer_;
  std::unique_ptr<Head[]> heads_;
  std::atomic<size_t> bytes_{0};
  std::atomic<bool> told_{false};  // that a device was wanted and did not take an index
};

struct TokenRange {
  int64_t begin = 0;
  int64_t end = 0;
  bool operator==(const TokenRange&) const = default;
};

// Which ranges should have an index when tokens [0, sealed_end) are sealed: blocks of `unit` * 4^t tokens, aligned to
// their own size, greedily the largest. A range, once there, stays until four of its size make the next: every row is
// indexed O(log N) times, and there are O(log N) ranges.
std::vector<TokenRange> PlanIndexRuns(int64_t sealed_end, int64_t unit);

}  // namespace mneme

#endif  // MNEME_MEMORY_SEGMENT_INDEX_RUN_H_
