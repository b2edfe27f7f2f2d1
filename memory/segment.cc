#include "memory/segment.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"

#include "base/status.h"

namespace mneme {
namespace {

// Rows come from the database in pieces of this many, so that loading needs little memory beside the result.
constexpr int64_t kLoadRows = 16 * kChunkRows;

// Calls sink(bytes, rows) with consecutive pieces of rows [0, rows) of `column`: chunks, then what the log records
// hold. `in_record` finds the column's bytes in a record.
template <typename Sink, typename InRecord>
absl::Status ReadColumn(Database& database, SegmentId segment, const Column& column, int64_t chunked_rows, int64_t rows,
                        size_t row_bytes, const std::vector<LogRecord>& records, const InRecord& in_record,
                        const Sink& sink) {
  std::string buffer;
  const int64_t from_chunks = std::min(rows, chunked_rows);
  for (int64_t begin = 0; begin < from_chunks; begin += kLoadRows) {
    const int64_t end = std::min(from_chunks, begin + kLoadRows);
    buffer.resize(static_cast<size_t>(end - begin) * row_bytes);
    MNEME_RETURN_IF_ERROR(
        database.ReadChunkRows(segment, column, begin, end, row_bytes, absl::MakeSpan(buffer.data(), buffer.size())));
    sink(buffer.data(), end - begin);
  }
  int64_t next = from_chunks;
  for (const LogRecord& record : records) {
    if (next >= rows) break;
    if (record.first_row + record.rows <= next) continue;
    if (record.first_row != next) break;
    sink(in_record(record), std::min(record.rows, rows - next));
    next += record.rows;
  }
  if (next < rows) {
    return absl::DataLossError(absl::StrCat("segment ", segment, " layer ", column.layer, ": rows ", next, " to ", rows,
                                            " are missing from the log"));
  }
  return absl::OkStatus();
}

}  // namespace

size_t LayerKeys::MemoryBytes() const {
  size_t bytes = 0;
  for (const auto& head : heads) bytes += head->MemoryBytes();
  for (const auto& coded : codes) bytes += coded->MemoryBytes();
  return bytes;
}

size_t LayerValues::MemoryBytes() const {
  size_t bytes = 0;
  for (const auto& head : heads) bytes += head->MemoryBytes();
  return bytes;
}

Segment::Segment(SegmentId id, const ModelCard& card, DType dtype, Database* database,
                 std::shared_ptr<RowCache> cache, int64_t persisted_rows, int64_t chunked_rows)
    : id_(id),
      cards_(card.layers),
      dtype_(dtype),
      database_(database),
      cache_(std::move(cache)),
      persisted_rows_(persisted_rows),
      chunked_rows_(chunked_rows),
      layers_(card.layers.size()),
      column_rows_(persisted_rows) {
  for (Layer& layer : layers_) layer.rows.store(persisted_rows, std::memory_order_relaxed);
}

Segment::~Segment() { cache_->Forget(this); }

std::shared_ptr<Segment> Segment::Sealed(SegmentId id, const ModelCard& card, DType dtype, Database* database,
                                         std::shared_ptr<RowCache> cache, int64_t rows) {
  auto segment = std::make_shared<Segment>(id, card, dtype, database, std::move(cache), rows, rows);
  MutexLock lock(&segment->mutex_);
  segment->sealed_ = true;
  return segment;
}

std::shared_ptr<Segment> Segment::SealAt(int64_t rows) {
  ModelCard card;
  card.layers = cards_;
  std::shared_ptr<Segment> sealed = Sealed(id_, card, dtype_, database_, cache_, rows);
  {
    MutexLock lock(&mutex_);
    MutexLock sealed_lock(&sealed->mutex_);
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
      sealed->layers_[layer].keys = layers_[layer].keys;
      sealed->layers_[layer].values = layers_[layer].values;
    }
    sealed->columns_ = columns_;
    sealed_as_ = sealed;
  }
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    // Counted against the budget from now on.
    size_t key_bytes = 0, value_bytes = 0;
    {
      MutexLock sealed_lock(&sealed->mutex_);
      const Layer& own = sealed->layers_[layer];
      if (own.keys != nullptr) key_bytes = own.keys->MemoryBytes();
      if (own.values != nullptr) value_bytes = own.values->MemoryBytes();
    }
    if (key_bytes > 0) cache_->Used(sealed, layer, RowKind::kKeys, key_bytes);
    if (value_bytes > 0) cache_->Used(sealed, layer, RowKind::kValues, value_bytes);
  }
  return sealed;
}

int64_t Segment::WholeRows() const {
  int64_t rows = layers_.front().rows.load(std::memory_order_acquire);
  for (const Layer& layer : layers_) rows = std::min(rows, layer.rows.load(std::memory_order_acquire));
  return rows;
}

absl::StatusOr<std::shared_ptr<LayerKeys>> Segment::LoadKeys(size_t layer, int64_t rows) {
  std::shared_ptr<LayerKeys>& keys = layers_[layer].keys;
  if (keys != nullptr && keys->rows() >= rows) return keys;
  const LayerCard& card = cards_[layer];
  const int64_t wanted = std::max(rows, persisted_rows_);
  // A fork may hold more rows of a sealed segment than the first view of it did; they are in chunks as well.
  const int64_t chunked = sealed_ ? wanted : chunked_rows_;
  std::vector<LogRecord> records;
  if (wanted > chunked) {
    MNEME_ASSIGN_OR_RETURN(records, database_->ReadLogs(id_, card.layer));
  }
  const size_t key_bytes = RowBytes(dtype_, card.key_dim);
  const size_t value_bytes = RowBytes(dtype_, card.value_dim);
  auto loaded = std::make_shared<LayerKeys>();
  for (int32_t head = 0; head < card.kv_heads; ++head) {
    auto head_rows = std::make_unique<KeyRows>(dtype_, card.key_dim);
    if (wanted > 0) head_rows->Reserve(wanted);
    MNEME_RETURN_IF_ERROR(ReadColumn(
        *database_, id_, {card.layer, head, ColumnKind::kKeys}, chunked, wanted, key_bytes, records,
        [&](const LogRecord& record) {
          return record.bytes.data() + static_cast<size_t>(record.rows) * static_cast<size_t>(head) * (key_bytes + value_bytes);
        },
        [&](const char* bytes, int64_t n) { head_rows->Append(bytes, n); }));
    loaded->heads.push_back(std::move(head_rows));
    loaded->codes.push_back(std::make_unique<KeyCodes>(card.key_dim));
  }
  keys = std::move(loaded);
  return keys;
}

absl::StatusOr<std::shared_ptr<LayerValues>> Segment::LoadValues(size_t layer, int64_t rows) {
  std::shared_ptr<LayerValues>& values = layers_[layer].values;
  if (values != nullptr && values->rows() >= rows) return values;
  const LayerCard& card = cards_[layer];
  const int64_t wanted = std::max(rows, persisted_rows_);
  // A fork may hold more rows of a sealed segment than the first view of it did; they are in chunks as well.
  const int64_t chunked = sealed_ ? wanted : chunked_rows_;
  std::vector<LogRecord> records;
  if (wanted > chunked) {
    MNEME_ASSIGN_OR_RETURN(records, database_->ReadLogs(id_, card.layer));
  }
  const size_t key_bytes = RowBytes(dtype_, card.key_dim);
  const size_t value_bytes = RowBytes(dtype_, card.value_dim);
  auto loaded = std::make_shared<LayerValues>();
  for (int32_t head = 0; head < card.kv_heads; ++head) {
    auto head_rows = std::make_unique<RowArray>(value_bytes);
    MNEME_RETURN_IF_ERROR(ReadColumn(
        *database_, id_, {card.layer, head, ColumnKind::kValues}, chunked, wanted, value_bytes, records,
        [&](const LogRecord& record) {
          const size_t n = static_cast<size_t>(record.rows);
          return record.bytes.data() + n * static_cast<size_t>(head) * (key_bytes + value_bytes) + n * key_bytes;
        },
        [&](const char* bytes, int64_t n) { head_rows->Append(bytes, n); }));
    loaded->heads.push_back(std::move(head_rows));
  }
  values = std::move(loaded);
  return values;
}

absl::StatusOr<std::shared_ptr<TokenColumns>> Segment::LoadColumns(int64_t rows) {
  if (columns_ != nullptr && columns_->positions.size() >= rows) return columns_;
  const int64_t wanted = std::max(rows, persisted_rows_);
  // A fork may hold more rows of a sealed segment than the first view of it did; they are in chunks as well.
  const int64_t chunked = sealed_ ? wanted : chunked_rows_;
  std::vector<LogRecord> records;
  if (wanted > chunked) {
    MNEME_ASSIGN_OR_RETURN(records, database_->ReadLogs(id_, -1));
  }
  auto loaded = std::make_shared<TokenColumns>();
  MNEME_RETURN_IF_ERROR(ReadColumn(
      *database_, id_, {0, 0, ColumnKind::kPositions}, chunked, wanted, sizeof(int64_t), records,
      [](const LogRecord& record) { return record.bytes.data(); },
      [&](const char* bytes, int64_t n) { loaded->positions.Append(bytes, n); }));
  MNEME_RETURN_IF_ERROR(ReadColumn(
      *database_, id_, {0, 0, ColumnKind::kTokenIds}, chunked, wanted, sizeof(int32_t), records,
      [](const LogRecord& record) { return record.bytes.data() + static_cast<size_t>(record.rows) * sizeof(int64_t); },
      [&](const char* bytes, int64_t n) { loaded->token_ids.Append(bytes, n); }));
  columns_ = std::move(loaded);
  return columns_;
}

absl::StatusOr<std::shared_ptr<const LayerKeys>> Segment::Keys(size_t layer, int64_t rows) {
  std::shared_ptr<const LayerKeys> keys;
  bool sealed;
  {
    MutexLock lock(&mutex_);
    MNEME_ASSIGN_OR_RETURN(keys, LoadKeys(layer, rows));
    sealed = sealed_;
  }
  if (sealed) cache_->Used(shared_from_this(), layer, RowKind::kKeys, keys->MemoryBytes());
  return keys;
}

absl::StatusOr<std::shared_ptr<const LayerValues>> Segment::Values(size_t layer, int64_t rows) {
  std::shared_ptr<const LayerValues> values;
  bool sealed;
  {
    MutexLock lock(&mutex_);
    MNEME_ASSIGN_OR_RETURN(values, LoadValues(layer, rows));
    sealed = sealed_;
  }
  if (sealed) cache_->Used(shared_from_this(), layer, RowKind::kValues, values->MemoryBytes());
  return values;
}

absl::StatusOr<std::shared_ptr<const TokenColumns>> Segment::Columns(int64_t rows) {
  MutexLock lock(&mutex_);
  return LoadColumns(rows);
}

absl::Status Segment::AppendRows(size_t layer, const char* keys, const char* values, int64_t n) {
  const LayerCard& card = cards_[layer];
  Layer& own = layers_[layer];
  const int64_t rows = own.rows.load(std::memory_order_relaxed);
  std::shared_ptr<LayerKeys> key_rows;
  std::shared_ptr<LayerValues> value_rows;
  {
    MutexLock lock(&mutex_);
    MNEME_ASSIGN_OR_RETURN(key_rows, LoadKeys(layer, rows));
    MNEME_ASSIGN_OR_RETURN(value_rows, LoadValues(layer, rows));
  }
  const size_t key_bytes = RowBytes(dtype_, card.key_dim) * static_cast<size_t>(n);
  const size_t value_bytes = RowBytes(dtype_, card.value_dim) * static_cast<size_t>(n);
  // All that can fail comes first: heads of unequal lengths would never fit together again.
  for (size_t head = 0; head < static_cast<size_t>(card.kv_heads); ++head) {
    value_rows->heads[head]->Reserve(rows + n);
    key_rows->heads[head]->Reserve(rows + n);
  }
  for (size_t head = 0; head < static_cast<size_t>(card.kv_heads); ++head) {
    value_rows->heads[head]->Append(values + head * value_bytes, n);
    key_rows->heads[head]->Append(keys + head * key_bytes, n);
  }
  own.rows.store(rows + n, std::memory_order_release);
  return absl::OkStatus();
}

absl::Status Segment::AppendColumns(const int64_t* positions, const int32_t* token_ids, int64_t n) {
  const int64_t rows = column_rows_.load(std::memory_order_relaxed);
  std::shared_ptr<TokenColumns> columns;
  {
    MutexLock lock(&mutex_);
    MNEME_ASSIGN_OR_RETURN(columns, LoadColumns(rows));
  }
  columns->positions.Reserve(rows + n);
  columns->token_ids.Reserve(rows + n);
  columns->positions.Append(positions, n);
  columns->token_ids.Append(token_ids, n);
  column_rows_.store(rows + n, std::memory_order_release);
  return absl::OkStatus();
}

void Segment::HasAtLeast(int64_t rows) {
  MutexLock lock(&mutex_);
  if (rows <= persisted_rows_) return;
  persisted_rows_ = rows;
  chunked_rows_ = rows;
  for (Layer& layer : layers_) layer.rows.store(rows, std::memory_order_release);
  column_rows_.store(rows, std::memory_order_release);
}

void Segment::SetPersisted(int64_t rows, int64_t chunked_rows) {
  MutexLock lock(&mutex_);
  persisted_rows_ = rows;
  chunked_rows_ = chunked_rows;
}

void Segment::Release(size_t layer, RowKind kind) {
  MutexLock lock(&mutex_);
  if (!sealed_) return;
  if (kind == RowKind::kKeys) {
    layers_[layer].keys.reset();
  } else {
    layers_[layer].values.reset();
  }
}

size_t Segment::MemoryBytes() const {
  MutexLock lock(&mutex_);
  size_t bytes = 0;
  for (const Layer& layer : layers_) {
    if (layer.keys != nullptr) bytes += layer.keys->MemoryBytes();
    if (layer.values != nullptr) bytes += layer.values->MemoryBytes();
  }
  if (columns_ != nullptr) bytes += columns_->positions.MemoryBytes() + columns_->token_ids.MemoryBytes();
  return bytes;
}

}  // namespace mneme
