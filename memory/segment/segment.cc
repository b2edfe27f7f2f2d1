// SPDX-License-Identifier: Apache-2.0
#include "memory/segment/segment.h"

#include <algorithm>
#include <utility>

#include "base/arenas.h"
#include "base/status.h"

namespace mneme {
namespace {

// A card without rotary settings: these are the larger part of a card, and a segment needs none of them.
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

}  // namespace

Segment::Segment(SegmentId id, const ModelCard& card, DType dtype, Database* database,
                 std::shared_ptr<SegmentContext> context, int64_t persisted_rows, int64_t chunked_rows)
    : id_(id),
      cards_(WithoutRotary(card.layers)),
      dtype_(dtype),
      database_(database),
      context_(std::move(context)),
      layers_(card.layers.size()),
      column_rows_(persisted_rows),
      persisted_rows_(persisted_rows),
      chunked_rows_(chunked_rows) {
  for (Layer& layer : layers_) layer.rows.store(persisted_rows, std::memory_order_relaxed);
}

Segment::~Segment() {
  context_->cache.Remove(this);
  const size_t bytes = RamBytes();
  layers_.clear();
  {
    MutexLock lock(&mutex_);
    columns_.reset();
  }
  context_->CountFreedBytes(bytes);
}

std::shared_ptr<Segment> Segment::NewSealed(SegmentId id, const ModelCard& card, DType dtype, Database* database,
                                            std::shared_ptr<SegmentContext> context, int64_t rows) {
  auto segment = std::make_shared<Segment>(id, card, dtype, database, std::move(context), rows, rows);
  MutexLock lock(&segment->mutex_);
  segment->sealed_ = true;
  return segment;
}

std::shared_ptr<Segment> Segment::SealAt(int64_t rows) {
  ModelCard card;
  card.layers = cards_;
  std::shared_ptr<Segment> sealed = NewSealed(id_, card, dtype_, database_, context_, rows);
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
    // From now on the cache counts these rows.
    SearchRows shared;
    {
      MutexLock sealed_lock(&sealed->mutex_);
      const Layer& own = sealed->layers_[layer];
      shared = {.keys = own.keys, .codes = own.codes, .values = own.values};
    }
    sealed->TouchCache(layer, shared);
  }
  return sealed;
}

int64_t Segment::WholeRows() const {
  int64_t rows = layers_.front().rows.load(std::memory_order_acquire);
  for (const Layer& layer : layers_) rows = std::min(rows, layer.rows.load(std::memory_order_acquire));
  return rows;
}

absl::StatusOr<std::shared_ptr<const LayerKeys>> Segment::Keys(size_t layer, int64_t rows) {
  SearchRows used;
  {
    MutexLock lock(&mutex_);
    MNEME_ASSIGN_OR_RETURN(used.keys, LoadRows(layer, rows, &Layer::keys));
  }
  TouchCache(layer, used);
  return used.keys;
}

absl::StatusOr<std::shared_ptr<const LayerValues>> Segment::Values(size_t layer, int64_t rows) {
  SearchRows used;
  {
    MutexLock lock(&mutex_);
    MNEME_ASSIGN_OR_RETURN(used.values, LoadRows(layer, rows, &Layer::values));
  }
  TouchCache(layer, used);
  return used.values;
}

absl::StatusOr<std::shared_ptr<const TokenColumns>> Segment::Columns(int64_t rows) {
  MutexLock lock(&mutex_);
  return LoadColumns(rows);
}

absl::Status Segment::ReadRows(size_t layer, int32_t head, RowKind kind, absl::Span<const int64_t> rows,
                               absl::Span<char> out) {
  const auto n = static_cast<int64_t>(rows.size());
  layers_[layer].rows_read_once[static_cast<size_t>(kind)] += n;
  context_->rows_read += n;
  return database_->ReadRows(id_, ColumnOf(layer, head, kind), rows, RowBytesOf(layer, kind), out);
}

void Segment::PrefetchRows(size_t layer, int32_t head, RowKind kind, absl::Span<const int64_t> rows) {
  database_->WillReadRows(id_, ColumnOf(layer, head, kind), rows, RowBytesOf(layer, kind));
}

absl::Status Segment::FillRows(size_t layer, int64_t count, Fill fill) {
  Layer& own = layers_[layer];
  if (own.appended_values == nullptr) {
    const int64_t rows = own.rows.load(std::memory_order_relaxed);
    MutexLock lock(&mutex_);
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<LayerKeys> keys, LoadRows(layer, rows, &Layer::keys));
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<LayerValues> values, LoadRows(layer, rows, &Layer::values));
    own.appended_keys = keys.get();
    own.appended_values = values.get();
  }
  const auto fill_array = [&](RowKind kind, int32_t head, RowArray& array) -> absl::Status {
    array.ReserveMore(count);
    for (int64_t done = 0; done < count;) {
      int64_t contiguous;
      char* const place = array.Unpublished(done, &contiguous);
      const int64_t n = std::min(contiguous, count - done);
      MNEME_RETURN_IF_ERROR(fill(kind, head, done, n, place));
      done += n;
    }
    return absl::OkStatus();
  };
  for (int32_t head = 0; head < cards_[layer].kv_heads; ++head) {
    const auto place = static_cast<size_t>(head);
    MNEME_RETURN_IF_ERROR(fill_array(RowKind::kKeys, head, own.appended_keys->heads[place]->rows()));
    MNEME_RETURN_IF_ERROR(fill_array(RowKind::kValues, head, *own.appended_values->heads[place]));
  }
  return absl::OkStatus();
}

void Segment::PublishRows(size_t layer, int64_t count) {
  Layer& own = layers_[layer];
  for (const auto& head : own.appended_keys->heads) head->rows().Publish(count);
  for (const auto& head : own.appended_values->heads) head->Publish(count);
  own.rows.store(own.rows.load(std::memory_order_relaxed) + count, std::memory_order_release);
}

absl::Status Segment::ReserveColumns(int64_t n) {
  const int64_t rows = column_rows_.load(std::memory_order_relaxed);
  if (appended_columns_ == nullptr) {
    MutexLock lock(&mutex_);
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<TokenColumns> columns, LoadColumns(rows));
    appended_columns_ = columns.get();
  }
  appended_columns_->positions.Reserve(rows + n);
  appended_columns_->token_ids.Reserve(rows + n);
  return absl::OkStatus();
}

void Segment::AppendColumns(const int64_t* positions, const int32_t* token_ids, int64_t n) {
  appended_columns_->positions.Append(positions, n);
  appended_columns_->token_ids.Append(token_ids, n);
  column_rows_.store(column_rows_.load(std::memory_order_relaxed) + n, std::memory_order_release);
}

void Segment::CodesGrew() {
  std::shared_ptr<Segment> sealed_as;
  {
    MutexLock lock(&mutex_);
    counted_bytes_ = 0;
    sealed_as = sealed_as_;
  }
  if (sealed_as != nullptr) sealed_as->CodesGrew();  // it shares the codes
}

void Segment::ExtendTo(int64_t rows) {
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
  own.rows_read_once[static_cast<size_t>(kind)] = 0;
  counted_bytes_ = 0;
}

size_t Segment::RamBytes() const {
  MutexLock lock(&mutex_);
  if (counted_bytes_ > 0) return counted_bytes_;
  size_t bytes = AllocatedBytes(sizeof(*this)) + AllocatedBytes(layers_.capacity() * sizeof(Layer)) +
                 AllocatedBytes(cards_.capacity() * sizeof(LayerCard));
  for (const Layer& layer : layers_) {
    if (layer.keys != nullptr) bytes += layer.keys->RamBytes();
    if (layer.codes != nullptr) bytes += layer.codes->RamBytes();
    if (layer.values != nullptr) bytes += layer.values->RamBytes();
  }
  if (columns_ != nullptr) bytes += columns_->RamBytes();
  if (sealed_) counted_bytes_ = bytes;
  return bytes;
}

size_t Segment::RowBytesOf(size_t layer, RowKind kind) const {
  return RowBytes(dtype_, kind == RowKind::kKeys ? cards_[layer].key_dim : cards_[layer].value_dim);
}

Column Segment::ColumnOf(size_t layer, int32_t head, RowKind kind) const {
  return {cards_[layer].layer, head, kind == RowKind::kKeys ? ColumnKind::kKeys : ColumnKind::kValues};
}

}  // namespace mneme
