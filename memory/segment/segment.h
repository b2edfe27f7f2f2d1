// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_SEGMENT_SEGMENT_H_
#define MNEME_MEMORY_SEGMENT_SEGMENT_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

#include "base/model_card.h"
#include "base/mutex.h"
#include "base/row_array.h"
#include "index/key_rows.h"
#include "index/scan/key_codes.h"
#include "memory/segment/row_cache.h"
#include "storage/database.h"

namespace mneme {

// The rows of one layer of a segment that are in memory, and their keys' codes, one entry a KV head.
struct LayerKeys {
  std::vector<std::unique_ptr<KeyRows>> heads;
  int64_t rows() const { return heads.front()->size(); }
  size_t MemoryBytes() const;
};
struct LayerCodes {
  std::vector<std::unique_ptr<KeyCodes>> heads;  // extended by whoever searches them and has the keys
  int64_t rows() const;                          // of which all heads have codes
  size_t MemoryBytes() const;
};
struct LayerValues {
  std::vector<std::unique_ptr<RowArray>> heads;
  int64_t rows() const { return heads.front()->size(); }
  size_t MemoryBytes() const;
};

// What belongs to a token and not to a layer.
struct TokenColumns {
  RowArray positions{sizeof(int64_t)};
  RowArray token_ids{sizeof(int32_t)};

  int64_t Position(int64_t row) const { return *reinterpret_cast<const int64_t*>(positions.Row(row)); }
  int32_t TokenId(int64_t row) const { return *reinterpret_cast<const int32_t*>(token_ids.Row(row)); }
};

// What a search needs of one layer of a segment.
struct SearchRows {
  std::shared_ptr<const LayerKeys> keys;  // null: read by ReadRows, and then all codes that there can be are there
  std::shared_ptr<const LayerCodes> codes;
  std::shared_ptr<const LayerValues> values;  // null: not asked for, or read by ReadRows
};

struct SearchNeeds {
  bool whole_keys = false;  // all keys are looked at
  bool values = false;
  // How many single keys and values the search may come to read if they are not in memory, in all KV heads.
  int64_t single_keys = 0;
  int64_t single_values = 0;
};

// What all segments of a store share. Outlives the store where a snapshot does.
struct SegmentContext {
  SegmentContext(size_t ram_budget_bytes, int64_t row_cost, std::function<void(absl::string_view)> warn)
      : cache(ram_budget_bytes), row_read_cost(row_cost), log(std::move(warn)) {}

  RowCache cache;
  const int64_t row_read_cost;                       // see StoreOptions
  const std::function<void(absl::string_view)> log;  // may be empty
  std::atomic<int64_t> codes_loaded{0};              // a layer's of a segment, as the next
  std::atomic<int64_t> codes_rebuilt{0};             // from the keys: they were missing or damaged
  std::atomic<int64_t> rows_read{0};                 // one by one, of what is not in memory

  // A segment has freed so many bytes. Many small arrays leave malloc with free pages that it keeps for the process;
  // they go back to the system each time that this much was freed, which costs a walk through malloc's free lists.
  static constexpr size_t kTrimBytes = size_t{16} << 20;
  void Freed(size_t bytes);
  std::atomic<size_t> freed_bytes{0};  // since then
};

// Owner of rows [0, n) of all layers: the growing tail of one memory, and once sealed an immutable range that forks
// share. Rows come in from the database when asked for, layer by layer, keys apart from values. A search of a sealed
// segment begins with codes alone and has single rows read; whole keys and values come in when so much has been read
// that they would have cost less, if the store's budget has room for them.
//
// Reading is thread-safe. Growing (the Append functions) belongs to one thread at a time, the memory's mutator.
class Segment : public std::enable_shared_from_this<Segment> {
 public:
  // A tail: `persisted_rows` of every layer are in `database`, the first `chunked_rows` of them in chunks; none in a
  // new one.
  Segment(SegmentId id, const ModelCard& card, DType dtype, Database* database, std::shared_ptr<SegmentContext> context,
          int64_t persisted_rows, int64_t chunked_rows);
  ~Segment();

  // A sealed segment: all `rows` rows are in chunks.
  static std::shared_ptr<Segment> Sealed(SegmentId id, const ModelCard& card, DType dtype, Database* database,
                                         std::shared_ptr<SegmentContext> context, int64_t rows);

  // This tail, sealed at its first `rows` rows (all in chunks by now), as an object of its own that takes over what is
  // in memory. Readers that still see the tail keep it as it is.
  std::shared_ptr<Segment> SealAt(int64_t rows);

  SegmentId id() const { return id_; }

  // Rows of layer number `layer` (its place in the card) that readers may use.
  int64_t LayerRows(size_t layer) const { return layers_[layer].rows.load(std::memory_order_acquire); }
  // Rows that every layer has.
  int64_t WholeRows() const;

  // At least the first `rows` rows, loaded if they are not in memory. What is returned stays valid while held, also
  // when the cache lets go of it. DataLoss if the rows are damaged.
  absl::StatusOr<std::shared_ptr<const LayerKeys>> Keys(size_t layer, int64_t rows);
  absl::StatusOr<std::shared_ptr<const LayerValues>> Values(size_t layer, int64_t rows);
  absl::StatusOr<std::shared_ptr<const TokenColumns>> Columns(int64_t rows);

  // What a search of the first `rows` rows needs, as little as possible read for it. Errors as above; codes that are
  // missing or damaged are made again, logged and counted.
  absl::StatusOr<SearchRows> ForSearch(size_t layer, int64_t rows, const SearchNeeds& needs);
  // Whether ForSearch would read nothing much.
  bool InMemory(size_t layer, int64_t rows) const;

  // Copies single rows of a sealed segment from the database: keys or values of one KV head, `which` ascending and
  // different, one behind the other to `rows`. DataLoss if they are damaged.
  absl::Status ReadRows(size_t layer, int32_t head, RowKind kind, absl::Span<const int64_t> which,
                        absl::Span<char> rows);
  // They will be read soon: see Database::WillReadRows.
  void WillReadRows(size_t layer, int32_t head, RowKind kind, absl::Span<const int64_t> which);

  // Appending rows of one layer goes in two steps. The first has `fill` write them in their places behind the last
  // ones: keys or values, rows [first, first + n) of all_rows, of one KV head, encoded, one behind the other. It has no
  // effect before the second, which shows them to readers and cannot fail.
  using Fill = absl::FunctionRef<absl::Status(RowKind kind, int32_t head, int64_t first, int64_t n, char* rows)>;
  absl::Status FillRows(size_t layer, int64_t all_rows, Fill fill);
  void PublishRows(size_t layer, int64_t all_rows);
  // Appends token columns; they must be in before the first layer's rows of the same tokens are published.
  absl::Status AppendColumns(const int64_t* positions, const int32_t* token_ids, int64_t n);
  int64_t ColumnRows() const { return column_rows_.load(std::memory_order_acquire); }

  // After a search has extended codes that ForSearch gave it.
  void CodesGrew();

  // Another memory holds more rows of this sealed segment than were known of.
  void HasAtLeast(int64_t rows);

  // After a commit of a tail: what the database holds now.
  void SetPersisted(int64_t rows, int64_t chunked_rows);

  // Lets go of one layer's rows or codes in memory. Sealed segments only; others keep theirs.
  void Release(size_t layer, RowKind kind);

  size_t MemoryBytes() const;

 private:
  struct Layer {
    std::atomic<int64_t> rows{0};
    std::shared_ptr<LayerKeys> keys;  // guarded by mutex_, as the next three
    std::shared_ptr<LayerCodes> codes;
    std::shared_ptr<LayerValues> values;
    std::array<uint64_t, kRowKinds> asked{};           // see RowCache::Admits
    std::array<std::atomic<int64_t>, kRowKinds> read;  // rows, by ReadRows since they were last in memory; no guard
    // The grower's own, no guard: the keys and values that it has seen to be there as a whole. A tail keeps these.
    LayerKeys* growing_keys = nullptr;
    LayerValues* growing_values = nullptr;
  };

  // In memory, or read now; kept only where the budget has room.
  absl::StatusOr<std::shared_ptr<LayerKeys>> LoadKeys(size_t layer, int64_t rows) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // keys: of the first `rows` rows, from which whoever searches makes the codes that are missing; null: all come now.
  absl::StatusOr<std::shared_ptr<LayerCodes>> LoadCodes(size_t layer, int64_t rows, const LayerKeys* keys)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Made from the keys, and written again.
  absl::Status RebuildCodes(size_t layer, int64_t rows, const absl::Status& why, LayerCodes& codes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whether the whole of it should be read, where a search may come to read `single` rows of it: because these would
  // cost more, or because it may stay and those read so far with them would have.
  bool Wants(size_t layer, RowKind kind, int64_t rows, int64_t single) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Admits(size_t layer, RowKind kind, int64_t rows) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  size_t RowBytesOf(size_t layer, RowKind kind) const;
  Column ColumnOf(size_t layer, int32_t head, RowKind kind) const;
  // Tells the cache what is in memory of what was used. Without mutex_.
  void Used(size_t layer, const SearchRows& used);
  absl::StatusOr<std::shared_ptr<LayerValues>> LoadValues(size_t layer, int64_t rows)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::shared_ptr<TokenColumns>> LoadColumns(int64_t rows) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const SegmentId id_;
  const std::vector<LayerCard> cards_;  // numbers and shapes only
  const DType dtype_;
  Database* const database_;
  const std::shared_ptr<SegmentContext> context_;

  mutable Mutex mutex_;
  int64_t persisted_rows_ ABSL_GUARDED_BY(mutex_);
  int64_t chunked_rows_ ABSL_GUARDED_BY(mutex_);
  bool sealed_ ABSL_GUARDED_BY(mutex_) = false;
  // What this tail became. Held, so that the rows stay on disk for readers that still see the tail.
  std::shared_ptr<Segment> sealed_as_ ABSL_GUARDED_BY(mutex_);
  std::vector<Layer> layers_;
  std::shared_ptr<TokenColumns> columns_ ABSL_GUARDED_BY(mutex_);
  std::atomic<int64_t> column_rows_{0};
  // What MemoryBytes counted of a sealed segment, until anything comes or goes; 0: not known. Hosts ask with every
  // token.
  mutable size_t counted_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_SEGMENT_SEGMENT_H_
