#ifndef MNEME_MEMORY_SEGMENT_H_
#define MNEME_MEMORY_SEGMENT_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "base/model_card.h"
#include "base/mutex.h"
#include "base/row_array.h"
#include "index/key_codes.h"
#include "index/key_rows.h"
#include "memory/row_cache.h"
#include "storage/database.h"

namespace mneme {

// The rows of one layer of a segment that are in memory, one entry a KV head.
struct LayerKeys {
  std::vector<std::unique_ptr<KeyRows>> heads;
  std::vector<std::unique_ptr<KeyCodes>> codes;  // of the same rows, extended by whoever searches them
  int64_t rows() const { return heads.front()->size(); }
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

// Owner of rows [0, n) of all layers: the growing tail of one memory, and once sealed an immutable range that forks
// share. Rows come in from the database when first asked for, layer by layer, keys apart from values.
//
// Reading is thread-safe. Growing (the Append functions) belongs to one thread at a time, the memory's mutator.
class Segment : public std::enable_shared_from_this<Segment> {
 public:
  // A tail: `persisted_rows` of every layer are in `database`, the first `chunked_rows` of them in chunks; none in a
  // new one.
  Segment(SegmentId id, const ModelCard& card, DType dtype, Database* database, std::shared_ptr<RowCache> cache,
          int64_t persisted_rows, int64_t chunked_rows);
  ~Segment();

  // A sealed segment: all `rows` rows are in chunks.
  static std::shared_ptr<Segment> Sealed(SegmentId id, const ModelCard& card, DType dtype, Database* database,
                                         std::shared_ptr<RowCache> cache, int64_t rows);

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

  // Appends n encoded rows of one layer: keys and values [kv_heads][n rows]. Readers see them when all are in.
  absl::Status AppendRows(size_t layer, const char* keys, const char* values, int64_t n);
  // Appends token columns; they must be in before the first layer's rows of the same tokens are published.
  absl::Status AppendColumns(const int64_t* positions, const int32_t* token_ids, int64_t n);
  int64_t ColumnRows() const { return column_rows_.load(std::memory_order_acquire); }

  // Another memory holds more rows of this sealed segment than were known of.
  void HasAtLeast(int64_t rows);

  // After a commit of a tail: what the database holds now.
  void SetPersisted(int64_t rows, int64_t chunked_rows);

  // Lets go of one layer's rows in memory. Sealed segments only; others keep theirs.
  void Release(size_t layer, RowKind kind);

  size_t MemoryBytes() const;

 private:
  struct Layer {
    std::atomic<int64_t> rows{0};
    std::shared_ptr<LayerKeys> keys;      // guarded by mutex_, as the next
    std::shared_ptr<LayerValues> values;
  };

  absl::StatusOr<std::shared_ptr<LayerKeys>> LoadKeys(size_t layer, int64_t rows) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::shared_ptr<LayerValues>> LoadValues(size_t layer, int64_t rows)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::shared_ptr<TokenColumns>> LoadColumns(int64_t rows) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const SegmentId id_;
  const std::vector<LayerCard> cards_;
  const DType dtype_;
  Database* const database_;
  const std::shared_ptr<RowCache> cache_;  // shared: a snapshot may outlive its store

  mutable Mutex mutex_;
  int64_t persisted_rows_ ABSL_GUARDED_BY(mutex_);
  int64_t chunked_rows_ ABSL_GUARDED_BY(mutex_);
  bool sealed_ ABSL_GUARDED_BY(mutex_) = false;
  // What this tail became. Held, so that the rows stay on disk for readers that still see the tail.
  std::shared_ptr<Segment> sealed_as_ ABSL_GUARDED_BY(mutex_);
  std::vector<Layer> layers_;
  std::shared_ptr<TokenColumns> columns_ ABSL_GUARDED_BY(mutex_);
  std::atomic<int64_t> column_rows_{0};
};

}  // namespace mneme

#endif  // MNEME_MEMORY_SEGMENT_H_
