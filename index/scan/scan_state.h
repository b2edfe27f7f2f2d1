// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_SCAN_STATE_H_
#define MNEME_INDEX_SCAN_SCAN_STATE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "absl/status/status.h"

#include "index/key_rows.h"
#include "index/key_source.h"
#include "index/scan/candidates.h"
#include "index/scan/key_codes.h"
#include "index/scan/ranking.h"
#include "index/scan/reordered_rows.h"
#include "index/scan/scan_counts.h"
#include "index/top_k.h"

// Internal to index/scan: what the parts of a CodeScan (block_scan.h, reranker.h) share during one scan.

namespace mneme {

// Rows [row_begin, row_end) of one CodeScan::Add or AddReordered, all of which have codes.
struct CodedRange {
  const KeyRows* keys;  // null: the keys are read from `source`
  KeySource* source;
  const KeyCodes* codes;
  int64_t row_begin;
  int64_t row_end;
  int64_t first_token;

  // Of AddReordered, else empty: the blocks to scan, and the row of each place of `codes` (-1: none).
  absl::Span<const BlockRange> blocks = {};
  const int32_t* row_numbers = nullptr;

  // Returns: the row at `place` of the codes.
  int64_t Row(int64_t place) const { return row_numbers == nullptr ? place : row_numbers[place]; }
  bool HasRow(int64_t row) const { return row_begin <= row && row < row_end; }
  // How many rows are scanned.
  int64_t RowCount() const { return row_numbers == nullptr ? row_end - row_begin : RowsOf(blocks); }

  // For the sample, the whole chunks of all ranges are numbered through: chunk c of this range has the number
  // c + chunk_offset.
  int64_t chunk_offset = 0;

  // Chunks [FirstWholeChunk(), WholeChunksEnd()) lie in the range with all their rows.
  // Of reordered rows no chunk is whole: the sample is spread over rows in token order.
  int64_t FirstWholeChunk() const { return (row_begin + KeyCodes::kChunkRows - 1) / KeyCodes::kChunkRows; }
  int64_t WholeChunksEnd() const {
    return row_numbers != nullptr ? FirstWholeChunk() : std::max(FirstWholeChunk(), row_end / KeyCodes::kChunkRows);
  }
};

// What a scan knows about one query so far.
struct QueryProgress {
  float known_threshold = -std::numeric_limits<float>::infinity();  // see CodeScan::Begin
  float min_penalty = 0;  // a lower bound of the penalties of the rows that are being scanned
  Candidates candidates;
  TopK sample;  // estimates of the best sampled blocks, one for each (SampledBlocks)
};

// What the parts of one CodeScan share: its arguments, its ranges, and what is known so far.
struct ScanState {
  const float* queries = nullptr;  // [count, dim]
  int64_t count = 0;
  int64_t dim = 0;
  DType dtype = DType::kF32;  // of the keys
  TopK* top = nullptr;        // [count]

  std::vector<CodedRange> ranges;
  std::vector<Ranking> rankings;        // [ranges][count]
  std::vector<QueryProgress> progress;  // [count] or more

  ScanCounts counts;
  absl::Status status;  // the first error of a KeySource

  const float* Vector(int64_t query) const { return queries + query * dim; }
  QueryProgress& Progress(int64_t query) { return progress[static_cast<size_t>(query)]; }
  const Ranking& RankingOf(int64_t query, size_t range) const {
    return rankings[range * static_cast<size_t>(count) + static_cast<size_t>(query)];
  }
  // A logit that the query's k-th best row is known to reach.
  float Threshold(int64_t query) { return std::max(top[query].threshold(), Progress(query).known_threshold); }
};

}  // namespace mneme

#endif  // MNEME_INDEX_SCAN_SCAN_STATE_H_
