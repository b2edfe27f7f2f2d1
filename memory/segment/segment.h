// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_SEGMENT_SEGMENT_H_
#define MNEME_MEMORY_SEGMENT_SEGMENT_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "base/model_card.h"
#include "base/mutex.h"
#include "memory/segment/row_cache.h"
#include "memory/segment/segment_context.h"
#include "memory/segment/segment_rows.h"
#include "storage/database.h"

namespace mneme {

class SegmentReader;

// What a search gets of one layer of a segment.
struct SearchRows {
  // Null: the search reads single keys by ReadRows, and `codes` covers RowsWithCodes of the rows asked for.
  std::shared_ptr<const LayerKeys> keys;
  std::shared_ptr<const LayerCodes> codes;
  // Null: not asked for, or the search reads single values by ReadRows.
  std::shared_ptr<const LayerValues> values;
};

// What a search may need of one layer of a segment.
struct SearchNeeds {
  bool all_keys = false;  // the search reads every key
  bool values = false;
  // How many single rows the search may read if they are not in RAM, over all KV heads.
  int64_t single_keys = 0;
  int64_t single_values = 0;
};

// Rows [0, n) of all layers of one memory: a tail that grows, or a sealed range that is immutable and that forks share.
// A layer's rows are loaded from the database on demand, keys and values apart. A search of a sealed segment starts
// from its codes and reads single rows; whole keys or values are loaded once single reads have cost as much, if the
// store's RAM budget admits them.
//
// Owned jointly (shared_ptr) by the states and snapshots that name it. Readers are thread-safe. The functions that
// append (FillRows, PublishRows, ReserveColumns, AppendColumns) belong to one thread at a time: the holder of the
// memory's mutator lock.
class Segment final : public CachedRowsOwner, public std::enable_shared_from_this<Segment> {
 public:
  // Makes a tail. `database`, which outlives the segment's loads, holds `persisted_rows` rows of every layer, the first
  // `chunked_rows` of them in chunks and the others in log records.
  Segment(SegmentId id, const ModelCard& card, DType dtype, Database* database, std::shared_ptr<SegmentContext> context,
          int64_t persisted_rows, int64_t chunked_rows);
  ~Segment();

  // Makes a sealed segment: the database holds all `rows` rows in chunks.
  static std::shared_ptr<Segment> NewSealed(SegmentId id, const ModelCard& card, DType dtype, Database* database,
                                            std::shared_ptr<SegmentContext> context, int64_t rows);

  // Returns: a sealed segment of this tail's first `rows` rows; it shares what the tail holds in RAM. Readers that
  // still use the tail keep it.
  // Requires: the first `rows` rows lie in chunks.
  std::shared_ptr<Segment> SealAt(int64_t rows);

  SegmentId id() const { return id_; }

  // Published rows of a layer, which is numbered by its place in the card.
  int64_t LayerRows(size_t layer) const { return layers_[layer].rows.load(std::memory_order_acquire); }
  // Returns: the rows that every layer has.
  int64_t WholeRows() const;

  // Return: at least the first `rows` rows, loaded if they are not in RAM. The result stays valid while it is held.
  // Errors: DataLoss if rows are damaged; those of Database.
  absl::StatusOr<std::shared_ptr<const LayerKeys>> Keys(size_t layer, int64_t rows);
  absl::StatusOr<std::shared_ptr<const LayerValues>> Values(size_t layer, int64_t rows);
  absl::StatusOr<std::shared_ptr<const TokenColumns>> Columns(int64_t rows);

  // Loads what a search of the first `rows` rows needs, and as little else as possible. Codes that are missing or
  // damaged are made again, logged and counted.
  // Errors: as Keys.
  absl::StatusOr<SearchRows> LoadForSearch(size_t layer, int64_t rows, const SearchNeeds& needs);
  // Returns: whether LoadForSearch finds the keys or the codes in RAM.
  bool IsLoaded(size_t layer, int64_t rows) const;

  // Copies single keys or values of one KV head of a sealed segment from the database to `out`, one after another.
  // Requires: `rows` ascend.
  // Errors: DataLoss if rows are damaged; those of Database.
  absl::Status ReadRows(size_t layer, int32_t head, RowKind kind, absl::Span<const int64_t> rows, absl::Span<char> out);
  // Has the disk start to read rows that ReadRows will ask for.
  void PrefetchRows(size_t layer, int32_t head, RowKind kind, absl::Span<const int64_t> rows);

  // A layer grows in two steps. FillRows has `fill` write encoded rows behind the last ones: for each KV head and kind
  // (keys or values) it asks for rows [first, first + n) of the `count` new ones, one after another at `rows`. Readers
  // see nothing of it. PublishRows then shows the rows to readers; it cannot fail.
  using Fill = absl::FunctionRef<absl::Status(RowKind kind, int32_t head, int64_t first, int64_t n, char* rows)>;
  absl::Status FillRows(size_t layer, int64_t count, Fill fill);
  void PublishRows(size_t layer, int64_t count);
  // The token columns grow in the same two steps: ReserveColumns makes room for n rows, AppendColumns shows them and
  // cannot fail.
  // Requires: they are called before the first layer publishes rows of the same tokens.
  absl::Status ReserveColumns(int64_t n);
  void AppendColumns(const int64_t* positions, const int32_t* token_ids, int64_t n);
  int64_t ColumnRows() const { return column_rows_.load(std::memory_order_acquire); }

  // To be called after codes that LoadForSearch returned were extended.
  void CodesGrew();

  // To be called if another memory names more rows of this sealed segment: all of them lie in chunks.
  void ExtendTo(int64_t rows);

  // To be called after a commit of a tail, with what the database holds now.
  void SetPersisted(int64_t rows, int64_t chunked_rows);

  // Frees one layer's rows or codes. Does nothing for a tail, whose rows may not be in the database.
  void Release(size_t layer, RowKind kind) override;

  size_t RamBytes() const;

 private:
  struct Layer {
    std::atomic<int64_t> rows{0};
    std::shared_ptr<LayerKeys> keys;                             // Guarded by mutex_
    std::shared_ptr<LayerCodes> codes;                           // Guarded by mutex_
    std::shared_ptr<LayerValues> values;                         // Guarded by mutex_
    std::array<uint64_t, kRowKinds> last_request{};              // Guarded by mutex_; see RowCache::Admits
    std::array<std::atomic<int64_t>, kRowKinds> rows_read_once;  // by ReadRows since the kind was last in RAM
    // The keys and values of a tail that is appended to. Only the appending thread uses them, so no lock guards them;
    // a tail keeps what they point to.
    LayerKeys* appended_keys = nullptr;
    LayerValues* appended_values = nullptr;
  };

  // Each returns rows that are in RAM or loads them. A load is kept where the cache admits it.
  template <typename Rows>
  absl::StatusOr<std::shared_ptr<Rows>> LoadRows(size_t layer, int64_t rows, std::shared_ptr<Rows> Layer::*member)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::shared_ptr<TokenColumns>> LoadColumns(int64_t rows) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Returns the codes to extend if `keys` holds the first `rows` rows, and all codes from disk if it is null.
  absl::StatusOr<std::shared_ptr<LayerCodes>> LoadCodes(size_t layer, int64_t rows, const LayerKeys* keys)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Makes codes from the keys and writes them to the database.
  absl::Status RebuildCodes(size_t layer, int64_t rows, const absl::Status& why, LayerCodes& codes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What a load of the first `rows` rows reads: at least what is persisted.
  SegmentReader NewReader(int64_t rows) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Returns: whether a search that may read `single` rows of `kind` should load all `rows` of them: since the single
  // reads cost more, or since single reads so far have cost as much and the cache admits the load.
  bool PrefersWholeLoad(size_t layer, RowKind kind, int64_t rows, int64_t single) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool CacheAdmits(size_t layer, RowKind kind, int64_t rows) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Counts rows that were used in the cache.
  void TouchCache(size_t layer, const SearchRows& used) ABSL_LOCKS_EXCLUDED(mutex_);

  size_t RowBytesOf(size_t layer, RowKind kind) const;
  Column ColumnOf(size_t layer, int32_t head, RowKind kind) const;

  const SegmentId id_;
  const std::vector<LayerCard> cards_;  // numbers and shapes only
  const DType dtype_;
  Database* const database_;
  const std::shared_ptr<SegmentContext> context_;
  std::vector<Layer> layers_;  // by place in the card; the vector itself never changes
  std::atomic<int64_t> column_rows_{0};
  TokenColumns* appended_columns_ = nullptr;  // the appending thread's, as Layer::appended_keys

  mutable Mutex mutex_;  // of what is in RAM and what the database holds
  int64_t persisted_rows_ ABSL_GUARDED_BY(mutex_);
  int64_t chunked_rows_ ABSL_GUARDED_BY(mutex_);
  bool sealed_ ABSL_GUARDED_BY(mutex_) = false;
  // What this tail was sealed as. Held so that readers of the tail keep the rows on disk.
  std::shared_ptr<Segment> sealed_as_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<TokenColumns> columns_ ABSL_GUARDED_BY(mutex_);
  // RamBytes of a sealed segment, since hosts ask for it with every token; 0 once rows came or went.
  mutable size_t counted_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_SEGMENT_SEGMENT_H_
