// SPDX-License-Identifier: Apache-2.0
// What a segment brings into RAM, and when: the loads, their admission to the cache, and codes that are made again.

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "memory/segment/code_columns.h"
#include "memory/segment/segment.h"
#include "memory/segment/segment_reader.h"

namespace mneme {

SegmentReader Segment::NewReader(int64_t rows) const {
  const int64_t wanted = std::max(rows, persisted_rows_);
  // A fork may name more rows of a sealed segment than its first view did; they lie in chunks as well.
  return SegmentReader(database_, id_, wanted, sealed_ ? wanted : chunked_rows_);
}

template <typename Rows>
absl::StatusOr<std::shared_ptr<Rows>> Segment::LoadRows(size_t layer, int64_t rows,
                                                        std::shared_ptr<Rows> Layer::*member) {
  std::shared_ptr<Rows>& place = layers_[layer].*member;
  if (place != nullptr && place->rows() >= rows) return place;
  const bool keep = !sealed_ || CacheAdmits(layer, Rows::kKind, std::max(rows, persisted_rows_));
  MNEME_ASSIGN_OR_RETURN(std::shared_ptr<Rows> loaded, NewReader(rows).ReadLayer<Rows>(cards_[layer], dtype_));
  if (keep) {
    place = loaded;
    counted_bytes_ = 0;
  }
  return loaded;
}

template absl::StatusOr<std::shared_ptr<LayerKeys>> Segment::LoadRows(size_t, int64_t,
                                                                      std::shared_ptr<LayerKeys> Layer::*);
template absl::StatusOr<std::shared_ptr<LayerValues>> Segment::LoadRows(size_t, int64_t,
                                                                        std::shared_ptr<LayerValues> Layer::*);

absl::StatusOr<std::shared_ptr<TokenColumns>> Segment::LoadColumns(int64_t rows) {
  if (columns_ != nullptr && columns_->positions.size() >= rows) return columns_;
  MNEME_ASSIGN_OR_RETURN(columns_, NewReader(rows).ReadTokenColumns());
  counted_bytes_ = 0;
  return columns_;
}

absl::StatusOr<std::shared_ptr<LayerCodes>> Segment::LoadCodes(size_t layer, int64_t rows, const LayerKeys* keys) {
  std::shared_ptr<LayerCodes>& codes = layers_[layer].codes;
  const LayerCard& card = cards_[layer];
  if (keys != nullptr) {
    if (codes == nullptr) {
      codes = LayerCodes::New(card);
      counted_bytes_ = 0;
    }
    return codes;
  }
  if (codes != nullptr && codes->rows() >= RowsWithCodes(rows)) return codes;
  const int64_t wanted = std::max(rows, persisted_rows_);
  std::shared_ptr<LayerCodes> loaded = LayerCodes::New(card);
  absl::Status status;
  for (int32_t head = 0; head < card.kv_heads && status.ok(); ++head) {
    status = ReadHeadCodes(*database_, id_, card.layer, head, wanted, *loaded->heads[static_cast<size_t>(head)]);
  }
  if (status.ok()) {
    ++context_->codes_loaded;
  } else if (absl::IsDataLoss(status) || absl::IsNotFound(status)) {
    loaded = LayerCodes::New(card);
    MNEME_RETURN_IF_ERROR(RebuildCodes(layer, wanted, status, *loaded));
  } else {
    return status;
  }
  codes = loaded;
  counted_bytes_ = 0;
  return codes;
}

absl::Status Segment::RebuildCodes(size_t layer, int64_t rows, const absl::Status& why, LayerCodes& codes) {
  // Codes that were never written, by an earlier version of mneme, are not worth a line.
  if (context_->log && absl::IsDataLoss(why)) {
    context_->log(absl::StrCat("codes are made again from their keys: ", why.message()));
  }
  ++context_->codes_rebuilt;
  MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<LayerKeys> keys, LoadRows(layer, rows, &Layer::keys));
  const std::unique_ptr<Transaction> transaction = database_->Begin();
  absl::Status written;
  for (size_t head = 0; head < codes.heads.size(); ++head) {
    codes.heads[head]->Extend(*keys->heads[head]);
    written.Update(
        WriteHeadCodes(*transaction, id_, cards_[layer].layer, static_cast<int32_t>(head), rows, *codes.heads[head]));
  }
  written.Update(transaction->Commit(Durability::kBuffered));
  // The search goes on without the copy on disk. A store that is open for reading only (FailedPrecondition) never
  // writes one.
  if (!written.ok() && !absl::IsFailedPrecondition(written) && context_->log) {
    context_->log(absl::StrCat("codes of segment ", id_, " cannot be written: ", written.message()));
  }
  return absl::OkStatus();
}

bool Segment::CacheAdmits(size_t layer, RowKind kind, int64_t rows) {
  const size_t bytes =
      static_cast<size_t>(rows) * static_cast<size_t>(cards_[layer].kv_heads) * RowBytesOf(layer, kind);
  return context_->cache.Admits(kind, bytes, &layers_[layer].last_request[static_cast<size_t>(kind)]);
}

bool Segment::PrefersWholeLoad(size_t layer, RowKind kind, int64_t rows, int64_t single) {
  const int64_t whole_bytes = rows * cards_[layer].kv_heads * static_cast<int64_t>(RowBytesOf(layer, kind));
  const int64_t row_cost = context_->row_read_cost;
  if (single * row_cost >= whole_bytes) return true;
  const int64_t read_so_far = layers_[layer].rows_read_once[static_cast<size_t>(kind)];
  return (read_so_far + single) * row_cost >= whole_bytes && CacheAdmits(layer, kind, rows);
}

absl::StatusOr<SearchRows> Segment::LoadForSearch(size_t layer, int64_t rows, const SearchNeeds& needs) {
  SearchRows result;
  {
    MutexLock lock(&mutex_);
    const Layer& own = layers_[layer];
    const int64_t all = std::max(rows, persisted_rows_);
    const auto in_ram = [&](const auto& loaded) { return loaded != nullptr && loaded->rows() >= rows; };
    if (!sealed_ || needs.all_keys || !IsCoded(all) || in_ram(own.keys) ||
        PrefersWholeLoad(layer, RowKind::kKeys, all, needs.single_keys)) {
      MNEME_ASSIGN_OR_RETURN(result.keys, LoadRows(layer, rows, &Layer::keys));
    }
    MNEME_ASSIGN_OR_RETURN(result.codes, LoadCodes(layer, rows, result.keys.get()));
    if (needs.values &&
        (!sealed_ || in_ram(own.values) || PrefersWholeLoad(layer, RowKind::kValues, all, needs.single_values))) {
      MNEME_ASSIGN_OR_RETURN(result.values, LoadRows(layer, rows, &Layer::values));
    }
  }
  TouchCache(layer, result);
  return result;
}

bool Segment::IsLoaded(size_t layer, int64_t rows) const {
  MutexLock lock(&mutex_);
  const Layer& own = layers_[layer];
  return (own.keys != nullptr && own.keys->rows() >= rows) ||
         (own.codes != nullptr && own.codes->rows() >= RowsWithCodes(rows));
}

void Segment::TouchCache(size_t layer, const SearchRows& used) {
  if (!context_->cache.bounded()) return;
  size_t bytes[kRowKinds] = {};
  {
    MutexLock lock(&mutex_);
    if (!sealed_) return;
    const Layer& own = layers_[layer];
    // Rows that were loaded and not kept are not counted.
    if (used.codes != nullptr && used.codes == own.codes) bytes[0] = used.codes->RamBytes();
    if (used.keys != nullptr && used.keys == own.keys) bytes[1] = used.keys->RamBytes();
    if (used.values != nullptr && used.values == own.values) bytes[2] = used.values->RamBytes();
  }
  for (const RowKind kind : {RowKind::kCodes, RowKind::kKeys, RowKind::kValues}) {
    const size_t kind_bytes = bytes[static_cast<size_t>(kind)];
    if (kind_bytes > 0) context_->cache.Touch(shared_from_this(), layer, kind, kind_bytes);
  }
}

}  // namespace mneme
