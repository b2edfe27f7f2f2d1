// SPDX-License-Identifier: Apache-2.0
#include "memory/segment/segment.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"

#include "base/arenas.h"
#include "base/status.h"
#include "memory/segment/code_columns.h"

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

// What a segment needs of a card. Rotary frequencies are the larger part of one, and every segment has a copy.
std::vector<LayerCard> WithoutRotary(const std::vector<LayerCard>& layers) {
  std::vector<LayerCard> slim(layers.size());
  for (size_t i = 0; i < layers.size(); ++i) {
    slim[i].layer = layers[i].layer;
    slim[i].kv_heads = layers[i].kv_heads;
    slim[i].key_dim = layers[i].key_dim;
    slim[i].value_dim = layers[i].value_dim;
  }
  return slim;
}

template <typename Heads>
size_t BytesOf(const Heads& heads) {
  // The list itself, in an object with a count of references, and what each head's object takes beside its own bytes.
  size_t bytes = AllocatedBytes(sizeof(heads) + 2 * sizeof(void*)) + AllocatedBytes(heads.capacity() * sizeof(void*));
  for (const auto& head : heads) bytes += AllocatedBytes(head->MemoryBytes());
  return bytes;
}

}  // namespace

size_t LayerKeys::MemoryBytes() const {
  return BytesOf(heads);
}
size_t LayerCodes::MemoryBytes() const {
  return BytesOf(heads);
}
int64_t LayerCodes::rows() const {
  int64_t rows = heads.front()->rows();
  for (const auto& head : heads) rows = std::min(rows, head->rows());
  return rows;
}
size_t LayerValues::MemoryBytes() const {
  return BytesOf(heads);
}

Segment::Segment(SegmentId id, const ModelCard& card, DType dtype, Database* database,
                 std::shared_ptr<SegmentContext> context, int64_t persisted_rows, int64_t chunked_rows)
    : id_(id),
      cards_(WithoutRotary(card.layers)),
      dtype_(dtype),
      database_(database),
      context_(std::move(context)),
      persisted_rows_(persisted_rows),
      chunked_rows_(chunked_rows),
      layers_(card.layers.size()),
      column_rows_(persisted_rows) {
  for (Layer& layer : layers_) layer.rows.store(persisted_rows, std::memory_order_relaxed);
}

Segment::~Segment() {
  context_->cache.Forget(this);
  const size_t bytes = MemoryBytes();
  layers_.clear();
  {
    MutexLock lock(&mutex_);
    columns_.reset();
  }
  context_->Freed(bytes);
}

void SegmentContext::Freed(size_t bytes) {
  if (freed_bytes.fetch_add(bytes, std::memory_order_relaxed) + bytes < kTrimBytes) return;
  freed_bytes.store(0, std::memory_order_relaxed);
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

std::shared_ptr<Segment> Segment::Sealed(SegmentId id, const ModelCard& card, DType dtype, Database* database,
                                         std::shared_ptr<SegmentContext> context, int64_t rows) {
  auto segment = std::make_shared<Segment>(id, card, dtype, database, std::move(context), rows, rows);
  MutexLock lock(&segment->mutex_);
  segment->sealed_ = true;
  return segment;
}

std::shared_ptr<Segment> Segment::SealAt(int64_t rows) {
  ModelCard card;
  card.layers = cards_;
  std::shared_ptr<Segment> sealed = Sealed(id_, card, dtype_, database_, context_, rows);
  {
    MutexLock lock(&mutex_);
    MutexLock sealed_lock(&sealed->mutex_);
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
      sealed->layers_[layer].keys = layers_[layer].keys;
      sealed->layers_[layer].codes = layers_[layer].codes;
      sealed->layers_[layer].values = layers_[layer].values;
    }
    sealed->columns_ = columns_;
    sealed_as_ = sealed;
  }
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    // Counted against the budget from now on.
    SearchRows there;
    {
      MutexLock sealed_lock(&sealed->mutex_);
      const Layer& own = sealed->layers_[layer];
      there = {own.keys, own.codes, own.values};
    }
    sealed->Used(layer, there);
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
  const bool keep = !sealed_ || Admits(layer, RowKind::kKeys, wanted);
  std::vector<LogRecord> records;
  if (wanted > chunked) {
    MNEME_ASSIGN_OR_RETURN(records, database_->ReadLogs(id_, card.layer));
  }
  const size_t key_bytes = RowBytes(dtype_, card.key_dim);
  const size_t value_bytes = RowBytes(dtype_, card.value_dim);
  auto loaded = std::make_shared<LayerKeys>();
  loaded->heads.reserve(static_cast<size_t>(card.kv_heads));
  for (int32_t head = 0; head < card.kv_heads; ++head) {
    auto head_rows = std::make_unique<KeyRows>(dtype_, card.key_dim);
    if (wanted > 0) head_rows->Reserve(wanted);
    MNEME_RETURN_IF_ERROR(ReadColumn(
        *database_, id_, {card.layer, head, ColumnKind::kKeys}, chunked, wanted, key_bytes, records,
        [&](const LogRecord& record) {
          return record.bytes.data() +
                 static_cast<size_t>(record.rows) * static_cast<size_t>(head) * (key_bytes + value_bytes);
        },
        [&](const char* bytes, int64_t n) { head_rows->Append(bytes, n); }));
    loaded->heads.push_back(std::move(head_rows));
  }
  if (keep) {
    keys = loaded;
    counted_bytes_ = 0;
  }
  return loaded;
}

absl::StatusOr<std::shared_ptr<LayerCodes>> Segment::LoadCodes(size_t layer, int64_t rows, const LayerKeys* keys) {
  std::shared_ptr<LayerCodes>& codes = layers_[layer].codes;
  const LayerCard& card = cards_[layer];
  const auto none = [&] {
    auto made = std::make_shared<LayerCodes>();
    made->heads.reserve(static_cast<size_t>(card.kv_heads));
    for (int32_t head = 0; head < card.kv_heads; ++head) {
      made->heads.push_back(std::make_unique<KeyCodes>(card.key_dim));
    }
    return made;
  };
  const int64_t wanted = std::max(rows, persisted_rows_);
  if (keys != nullptr) {
    if (codes == nullptr) {
      codes = none();
      counted_bytes_ = 0;
    }
    return codes;
  }
  if (codes != nullptr && codes->rows() >= RowsWithCodes(rows)) return codes;
  std::shared_ptr<LayerCodes> loaded = none();
  absl::Status status;
  for (int32_t head = 0; head < card.kv_heads && status.ok(); ++head) {
    status = ReadCodes(*database_, id_, card.layer, head, wanted, *loaded->heads[static_cast<size_t>(head)]);
  }
  if (status.ok()) {
    ++context_->codes_loaded;
  } else if (absl::IsDataLoss(status) || absl::IsNotFound(status)) {
    loaded = none();
    MNEME_RETURN_IF_ERROR(RebuildCodes(layer, wanted, status, *loaded));
  } else {
    return status;
  }
  codes = loaded;
  counted_bytes_ = 0;
  return codes;
}

absl::Status Segment::RebuildCodes(size_t layer, int64_t rows, const absl::Status& why, LayerCodes& codes) {
  // Stores of earlier versions have none at all: no news.
  if (context_->log && absl::IsDataLoss(why)) {
    context_->log(absl::StrCat("codes are made again from their keys: ", why.message()));
  }
  ++context_->codes_rebuilt;
  MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<LayerKeys> keys, LoadKeys(layer, rows));
  const std::unique_ptr<Transaction> transaction = database_->Begin();
  absl::Status kept;
  for (size_t head = 0; head < codes.heads.size(); ++head) {
    codes.heads[head]->Extend(*keys->heads[head]);
    kept.Update(
        WriteHeadCodes(*transaction, id_, cards_[layer].layer, static_cast<int32_t>(head), rows, *codes.heads[head]));
  }
  kept.Update(transaction->Commit(Durability::kBuffered));
  // A search needs the codes, not their copy on disk; and a store that is open for reading only gets none.
  if (!kept.ok() && !absl::IsFailedPrecondition(kept) && context_->log) {
    context_->log(absl::StrCat("codes of segment ", id_, " cannot be written: ", kept.message()));
  }
  return absl::OkStatus();
}

size_t Segment::RowBytesOf(size_t layer, RowKind kind) const {
  return RowBytes(dtype_, kind == RowKind::kKeys ? cards_[layer].key_dim : cards_[layer].value_dim);
}

Column Segment::ColumnOf(size_t layer, int32_t head, RowKind kind) const {
  return {cards_[layer].layer, head, kind == RowKind::kKeys ? ColumnKind::kKeys : ColumnKind::kValues};
}

bool Segment::Admits(size_t layer, RowKind kind, int64_t rows) {
  const size_t bytes =
      static_cast<size_t>(rows) * static_cast<size_t>(cards_[layer].kv_heads) * RowBytesOf(layer, kind);
  return context_->cache.Admits(kind, bytes, &layers_[layer].asked[static_cast<size_t>(kind)]);
}

bool Segment::Wants(size_t layer, RowKind kind, int64_t rows, int64_t single) {
  const int64_t whole = rows * cards_[layer].kv_heads * static_cast<int64_t>(RowBytesOf(layer, kind));
  const int64_t cost = context_->row_read_cost;
  if (single * cost >= whole) return true;
  return (layers_[layer].read[static_cast<size_t>(kind)] + single) * cost >= whole && Admits(layer, kind, rows);
}

absl::StatusOr<std::shared_ptr<LayerValues>> Segment::LoadValues(size_t layer, int64_t rows) {
  std::shared_ptr<LayerValues>& values = layers_[layer].values;
  if (values != nullptr && values->rows() >= rows) return values;
  const LayerCard& card = cards_[layer];
  const int64_t wanted = std::max(rows, persisted_rows_);
  // A fork may hold more rows of a sealed segment than the first view of it did; they are in chunks as well.
  const int64_t chunked = sealed_ ? wanted : chunked_rows_;
  const bool keep = !sealed_ || Admits(layer, RowKind::kValues, wanted);
  std::vector<LogRecord> records;
  if (wanted > chunked) {
    MNEME_ASSIGN_OR_RETURN(records, database_->ReadLogs(id_, card.layer));
  }
  const size_t key_bytes = RowBytes(dtype_, card.key_dim);
  const size_t value_bytes = RowBytes(dtype_, card.value_dim);
  auto loaded = std::make_shared<LayerValues>();
  loaded->heads.reserve(static_cast<size_t>(card.kv_heads));
  for (int32_t head = 0; head < card.kv_heads; ++head) {
    auto head_rows = std::make_unique<RowArray>(value_bytes);
    if (wanted > 0) head_rows->Reserve(wanted);
    MNEME_RETURN_IF_ERROR(ReadColumn(
        *database_, id_, {card.layer, head, ColumnKind::kValues}, chunked, wanted, value_bytes, records,
        [&](const LogRecord& record) {
          const size_t n = static_cast<size_t>(record.rows);
          return record.bytes.data() + n * static_cast<size_t>(head) * (key_bytes + value_bytes) + n * key_bytes;
        },
        [&](const char* bytes, int64_t n) { head_rows->Append(bytes, n); }));
    loaded->heads.push_back(std::move(head_rows));
  }
  if (keep) {
    values = loaded;
    counted_bytes_ = 0;
  }
  return loaded;
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
  counted_bytes_ = 0;
  return columns_;
}

absl::StatusOr<std::shared_ptr<const LayerKeys>> Segment::Keys(size_t layer, int64_t rows) {
  SearchRows used;
  {
    MutexLock lock(&mutex_);
    MNEME_ASSIGN_OR_RETURN(used.keys, LoadKeys(layer, rows));
  }
  Used(layer, used);
  return used.keys;
}

absl::StatusOr<std::shared_ptr<const LayerValues>> Segment::Values(size_t layer, int64_t rows) {
  SearchRows used;
  {
    MutexLock lock(&mutex_);
    MNEME_ASSIGN_OR_RETURN(used.values, LoadValues(layer, rows));
  }
  Used(layer, used);
  return used.values;
}

absl::StatusOr<SearchRows> Segment::ForSearch(size_t layer, int64_t rows, const SearchNeeds& needs) {
  SearchRows found;
  {
    MutexLock lock(&mutex_);
    const Layer& own = layers_[layer];
    const int64_t all = std::max(rows, persisted_rows_);
    const auto there = [&](const auto& loaded) { return loaded != nullptr && loaded->rows() >= rows; };
    if (!sealed_ || needs.whole_keys || !IsCoded(all) || there(own.keys) ||
        Wants(layer, RowKind::kKeys, all, needs.single_keys)) {
      MNEME_ASSIGN_OR_RETURN(found.keys, LoadKeys(layer, rows));
    }
    MNEME_ASSIGN_OR_RETURN(found.codes, LoadCodes(layer, rows, found.keys.get()));
    if (needs.values && (!sealed_ || there(own.values) || Wants(layer, RowKind::kValues, all, needs.single_values))) {
      MNEME_ASSIGN_OR_RETURN(found.values, LoadValues(layer, rows));
    }
  }
  Used(layer, found);
  return found;
}

bool Segment::InMemory(size_t layer, int64_t rows) const {
  MutexLock lock(&mutex_);
  const Layer& own = layers_[layer];
  return (own.keys != nullptr && own.keys->rows() >= rows) ||
         (own.codes != nullptr && own.codes->rows() >= RowsWithCodes(rows));
}

void Segment::Used(size_t layer, const SearchRows& used) {
  if (!context_->cache.bounded()) return;
  size_t bytes[kRowKinds] = {};
  {
    MutexLock lock(&mutex_);
    if (!sealed_) return;
    const Layer& own = layers_[layer];
    // What was read to be let go of at once is not counted.
    if (used.codes != nullptr && used.codes == own.codes) bytes[0] = used.codes->MemoryBytes();
    if (used.keys != nullptr && used.keys == own.keys) bytes[1] = used.keys->MemoryBytes();
    if (used.values != nullptr && used.values == own.values) bytes[2] = used.values->MemoryBytes();
  }
  for (const RowKind kind : {RowKind::kCodes, RowKind::kKeys, RowKind::kValues}) {
    const size_t own_bytes = bytes[static_cast<size_t>(kind)];
    if (own_bytes > 0) context_->cache.Used(shared_from_this(), layer, kind, own_bytes);
  }
}

absl::Status Segment::ReadRows(size_t layer, int32_t head, RowKind kind, absl::Span<const int64_t> which,
                               absl::Span<char> rows) {
  const auto n = static_cast<int64_t>(which.size());
  layers_[layer].read[static_cast<size_t>(kind)] += n;
  context_->rows_read += n;
  return database_->ReadRows(id_, ColumnOf(layer, head, kind), which, RowBytesOf(layer, kind), rows);
}

void Segment::WillReadRows(size_t layer, int32_t head, RowKind kind, absl::Span<const int64_t> which) {
  database_->WillReadRows(id_, ColumnOf(layer, head, kind), which, RowBytesOf(layer, kind));
}

absl::StatusOr<std::shared_ptr<const TokenColumns>> Segment::Columns(int64_t rows) {
  MutexLock lock(&mutex_);
  return LoadColumns(rows);
}

absl::Status Segment::FillRows(size_t layer, int64_t all_rows, Fill fill) {
  Layer& own = layers_[layer];
  if (own.growing_values == nullptr) {
    const int64_t rows = own.rows.load(std::memory_order_relaxed);
    MutexLock lock(&mutex_);
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<LayerKeys> keys, LoadKeys(layer, rows));
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<LayerValues> values, LoadValues(layer, rows));
    own.growing_keys = keys.get();
    own.growing_values = values.get();
  }
  const auto fill_array = [&](RowKind kind, int32_t head, RowArray& array) -> absl::Status {
    array.ReserveMore(all_rows);
    for (int64_t done = 0; done < all_rows;) {
      int64_t contiguous;
      char* const place = array.Unpublished(done, &contiguous);
      const int64_t n = std::min(contiguous, all_rows - done);
      MNEME_RETURN_IF_ERROR(fill(kind, head, done, n, place));
      done += n;
    }
    return absl::OkStatus();
  };
  for (int32_t head = 0; head < cards_[layer].kv_heads; ++head) {
    const auto place = static_cast<size_t>(head);
    MNEME_RETURN_IF_ERROR(fill_array(RowKind::kKeys, head, own.growing_keys->heads[place]->rows()));
    MNEME_RETURN_IF_ERROR(fill_array(RowKind::kValues, head, *own.growing_values->heads[place]));
  }
  return absl::OkStatus();
}

void Segment::PublishRows(size_t layer, int64_t all_rows) {
  Layer& own = layers_[layer];
  for (const auto& head : own.growing_keys->heads) head->rows().Publish(all_rows);
  for (const auto& head : own.growing_values->heads) head->Publish(all_rows);
  own.rows.store(own.rows.load(std::memory_order_relaxed) + all_rows, std::memory_order_release);
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

void Segment::CodesGrew() {
  std::shared_ptr<Segment> sealed_as;
  {
    MutexLock lock(&mutex_);
    counted_bytes_ = 0;
    sealed_as = sealed_as_;
  }
  if (sealed_as != nullptr) sealed_as->CodesGrew();  // which has the same codes
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
  Layer& own = layers_[layer];
  switch (kind) {
    case RowKind::kCodes: own.codes.reset(); break;
    case RowKind::kKeys: own.keys.reset(); break;
    case RowKind::kValues: own.values.reset(); break;
  }
  own.read[static_cast<size_t>(kind)] = 0;
  counted_bytes_ = 0;
}

size_t Segment::MemoryBytes() const {
  MutexLock lock(&mutex_);
  if (counted_bytes_ > 0) return counted_bytes_;
  size_t bytes = AllocatedBytes(sizeof(*this)) + AllocatedBytes(layers_.capacity() * sizeof(Layer)) +
                 AllocatedBytes(cards_.capacity() * sizeof(LayerCard));
  for (const Layer& layer : layers_) {
    if (layer.keys != nullptr) bytes += layer.keys->MemoryBytes();
    if (layer.codes != nullptr) bytes += layer.codes->MemoryBytes();
    if (layer.values != nullptr) bytes += layer.values->MemoryBytes();
  }
  if (columns_ != nullptr) bytes += columns_->positions.MemoryBytes() + columns_->token_ids.MemoryBytes();
  if (sealed_) counted_bytes_ = bytes;
  return bytes;
}

}  // namespace mneme
