// SPDX-License-Identifier: Apache-2.0
#include "memory/segment/code_columns.h"

#include "absl/types/span.h"

#include "base/status.h"
#include "memory/segment/column_writer.h"

namespace mneme {
namespace {

constexpr int64_t kMinCodedRows = 512;

// Codes of wider keys stay in RAM only: a chunk of them would be too large for one database value.
constexpr size_t kMaxBlockBytes = size_t{1} << 20;

}  // namespace

bool IsCoded(int64_t rows) {
  return rows >= kMinCodedRows;
}

int64_t RowsWithCodes(int64_t rows) {
  return rows / KeyCodes::kBlockRows * KeyCodes::kBlockRows;
}

int64_t HeadCodeBytes(const KeyCodes& codes, int64_t rows) {
  const int64_t coded = IsCoded(rows) ? RowsWithCodes(rows) : 0;
  return KeyCodes::MeansOf(coded) * static_cast<int64_t>(codes.mean_bytes()) +
         KeyCodes::BlocksOf(coded) * static_cast<int64_t>(codes.block_bytes());
}

int64_t CodeBytes(const ModelCard& card, int64_t rows) {
  int64_t bytes = 0;
  for (const LayerCard& layer : card.layers) bytes += layer.kv_heads * HeadCodeBytes(KeyCodes(layer.key_dim), rows);
  return bytes;
}

absl::Status WriteHeadCodes(Transaction& transaction, SegmentId segment, int32_t layer, int32_t head, int64_t rows,
                            const KeyCodes& codes) {
  if (!IsCoded(rows) || codes.block_bytes() > kMaxBlockBytes) return absl::OkStatus();
  const int64_t coded = RowsWithCodes(rows);
  MNEME_RETURN_IF_ERROR(WriteColumn(
      transaction, segment, {layer, head, ColumnKind::kCodeMeans}, 0, KeyCodes::MeansOf(coded), codes.mean_bytes(),
      [&](int64_t i, int64_t* contiguous) { return codes.Means(i * KeyCodes::kChunkRows, contiguous); }));
  return WriteColumn(
      transaction, segment, {layer, head, ColumnKind::kCodes}, 0, KeyCodes::BlocksOf(coded), codes.block_bytes(),
      [&](int64_t i, int64_t* contiguous) { return codes.Blocks(i * KeyCodes::kBlockRows, contiguous); });
}

absl::Status ReadHeadCodes(Database& database, SegmentId segment, int32_t layer, int32_t head, int64_t rows,
                           KeyCodes& codes) {
  if (codes.block_bytes() > kMaxBlockBytes) return absl::NotFoundError("codes of so many dims are not stored");
  const int64_t coded = RowsWithCodes(rows);
  return codes.Restore(coded, [&](absl::Span<char> means, absl::Span<char> blocks) -> absl::Status {
    MNEME_RETURN_IF_ERROR(database.ReadChunkRows(segment, {layer, head, ColumnKind::kCodeMeans}, 0,
                                                 KeyCodes::MeansOf(coded), codes.mean_bytes(), means));
    return database.ReadChunkRows(segment, {layer, head, ColumnKind::kCodes}, 0, KeyCodes::BlocksOf(coded),
                                  codes.block_bytes(), blocks);
  });
}

}  // namespace mneme
