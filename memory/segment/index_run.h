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

// Indices over the rows of tokens [first_token, first_token + tokens) of a memory, one for each layer and KV head. An
// index blob is read when it is first needed; one that is missing or damaged is built again from the rows, and logged.
// Owned jointly (shared_ptr) by the states and snapshots that name it. Thread-safe.
class IndexRun {
 public:
  // Writes the f32 keys [tokens, key_dim] of one layer (its place in the card) and KV head, for a build.
  using KeySource = absl::FunctionRef<absl::Status(size_t layer, int32_t head, float* keys)>;

  struct Options {
    bool trust_blobs = true;   // blobs are parsed; else every index is built from its rows
    bool write_blobs = false;  // the store is open for writing
    std::function<void(absl::string_view)> log;
  };

  // `database` and `counters` outlive the run.
  IndexRun(IndexId id, int64_t first_token, int64_t tokens, IndexSpec spec, const ModelCard& card, Database* database,
           IndexCounters* counters, Options options);

  IndexId id() const { return id_; }
  int64_t first_token() const { return first_token_; }
  int64_t tokens() const { return tokens_; }
  int64_t end() const { return first_token_ + tokens_; }
  const IndexSpec& spec() const { return spec_; }

  // Returns: the index of one layer and head, from RAM, from its blob or built from `keys`.
  // Errors: those of `keys` and of BuildKeyIndex.
  absl::StatusOr<std::shared_ptr<const KeyIndex>> Get(size_t layer, int32_t head, KeySource keys);

  // Builds one index and writes its blob.
  // Errors: as Get; those of Database if the blob cannot be written.
  absl::Status Build(size_t layer, int32_t head, KeySource keys);

  // Does not wait for builds.
  size_t RamBytes() const { return bytes_; }

 private:
  // One lock for each layer and KV head: a load delays only those who ask for the same index.
  struct Head {
    Mutex mutex;
    std::shared_ptr<const KeyIndex> index ABSL_GUARDED_BY(mutex);
  };

  // Returns null if the blob is missing or damaged, which it logs.
  std::shared_ptr<const KeyIndex> LoadBlob(size_t layer, int32_t head) const;
  // write_must_succeed: a blob that cannot be written is an error.
  absl::StatusOr<std::shared_ptr<const KeyIndex>> BuildLocked(size_t layer, int32_t head, KeySource keys,
                                                              bool write_must_succeed, Head& place)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(place.mutex);
  void Keep(Head& place, std::shared_ptr<const KeyIndex> index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(place.mutex);
  Head& Place(size_t layer, int32_t head) { return heads_[first_of_layer_[layer] + static_cast<size_t>(head)]; }

  const IndexId id_;
  const int64_t first_token_;
  const int64_t tokens_;
  const IndexSpec spec_;
  const std::vector<LayerCard> cards_;
  Database* const database_;
  IndexCounters* const counters_;
  const Options options_;
  std::vector<size_t> first_of_layer_;  // of each layer: its first place in heads_
  std::unique_ptr<Head[]> heads_;
  std::atomic<size_t> bytes_{0};
  std::atomic<bool> cpu_search_logged_{false};  // a GPU index is searched by the CPU, and the log says so
};

struct TokenRange {
  int64_t begin = 0;
  int64_t end = 0;
  bool operator==(const TokenRange&) const = default;
};

// Returns: the ranges that should have an index when tokens [0, sealed_end) are sealed. They are blocks of unit * 4^t
// tokens, aligned to their own size, the largest first. A range stays in the plan until four of its size make the next
// larger one. So every row is indexed O(log N) times, and there are O(log N) ranges.
std::vector<TokenRange> PlanIndexRuns(int64_t sealed_end, int64_t unit);

}  // namespace mneme

#endif  // MNEME_MEMORY_SEGMENT_INDEX_RUN_H_
