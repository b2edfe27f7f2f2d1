// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_SEGMENT_SEGMENT_ROWS_H_
#define MNEME_MEMORY_SEGMENT_SEGMENT_ROWS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/dtype.h"
#include "base/model_card.h"
#include "base/row_array.h"
#include "index/key_rows.h"
#include "index/scan/key_codes.h"
#include "memory/segment/row_cache.h"

namespace mneme {

// Parts of a segment that are in RAM. A segment shares them with the readers that hold them: rows once published never
// change, so a reader needs no lock.

// Encoded keys of one layer, by KV head.
struct LayerKeys {
  static constexpr RowKind kKind = RowKind::kKeys;
  static std::unique_ptr<KeyRows> NewHead(const LayerCard& layer, DType dtype) {
    return std::make_unique<KeyRows>(dtype, layer.key_dim);
  }
  static RowArray& Array(KeyRows& head) { return head.rows(); }

  int64_t rows() const { return heads.front()->size(); }
  size_t RamBytes() const;

  std::vector<std::unique_ptr<KeyRows>> heads;
};

// Encoded values of one layer, by KV head.
struct LayerValues {
  static constexpr RowKind kKind = RowKind::kValues;
  static std::unique_ptr<RowArray> NewHead(const LayerCard& layer, DType dtype) {
    return std::make_unique<RowArray>(RowBytes(dtype, layer.value_dim));
  }
  static RowArray& Array(RowArray& head) { return head; }

  int64_t rows() const { return heads.front()->size(); }
  size_t RamBytes() const;

  std::vector<std::unique_ptr<RowArray>> heads;
};

// Search codes of the keys of one layer, by KV head. A search that has the keys extends the codes it needs.
struct LayerCodes {
  // Without rows.
  static std::shared_ptr<LayerCodes> New(const LayerCard& layer);

  int64_t rows() const;  // the rows that have codes in every head
  size_t RamBytes() const;

  std::vector<std::unique_ptr<KeyCodes>> heads;
};

// The columns that all layers share: one entry a token.
struct TokenColumns {
  RowArray positions{sizeof(int64_t)};
  RowArray token_ids{sizeof(int32_t)};

  int64_t Position(int64_t row) const { return *reinterpret_cast<const int64_t*>(positions.Row(row)); }
  int32_t TokenId(int64_t row) const { return *reinterpret_cast<const int32_t*>(token_ids.Row(row)); }
  size_t RamBytes() const { return positions.MemoryBytes() + token_ids.MemoryBytes(); }
};

// Returns: the bytes of one token in rows of all layers, its token columns included.
int64_t TokenBytes(const ModelCard& card, DType dtype);

}  // namespace mneme

#endif  // MNEME_MEMORY_SEGMENT_SEGMENT_ROWS_H_
