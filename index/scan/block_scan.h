// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_BLOCK_SCAN_H_
#define MNEME_INDEX_SCAN_BLOCK_SCAN_H_

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"

#include "index/scan/coded_queries.h"
#include "index/scan/dot_bound.h"
#include "index/scan/reranker.h"
#include "index/scan/sampled_blocks.h"
#include "index/scan/scan_state.h"

namespace mneme {

// Internal to index/scan: reads all codes of a scan and collects the candidates of every query. Not thread-safe.
class BlockScan {
 public:
  // reranker: reads keys early if a query has too many candidates.
  BlockScan(ScanState* state, Reranker* reranker) : state_(*state), reranker_(*reranker) {}

  // Scans the blocks of all ranges. use_sample: whether to read a sample of blocks first, to estimate thresholds.
  // Requires: there is at least one range.
  void Run(const codes::Kernels& kernels, bool use_sample);

 private:
  // One of the sampled blocks.
  struct SampledBlock {
    size_t range;
    int64_t block;  // its number in the range's codes
    const char* data;
  };

  // Numbers the whole chunks of all ranges. Returns: how many there are.
  int64_t NumberChunks();

  // Raises the estimated threshold of every query by what the sampled blocks reach. Does nothing if the sample is too
  // small for some query's k. It keeps no candidates, since most would be kept in vain while thresholds are low; the
  // sampled blocks are scanned again with all others.
  void ScanSample(const SampledBlocks& sample);
  // Returns: sampled block i, or the last one if there are fewer. Requires: it lies in `range` or a later one.
  SampledBlock FindSampled(const SampledBlocks& sample, int64_t i, size_t range) const;
  // Returns: the chunks of sampled blocks i, i + 1, …, as many as MeanDots takes at once, in `chunks`.
  absl::Span<const MeanDots::Chunk> ChunksOfSample(const SampledBlocks& sample, int64_t i, size_t range,
                                                   MeanDots::Chunk (&chunks)[MeanDots::kChunks]) const;

  // Makes `range` the current one, and sets min_dot of every query for it.
  void BeginRange(size_t range);
  // Scans all blocks of the current range.
  void ScanRange();
  // Scans the chosen blocks of the current range, which is one of CodeScan::AddReordered.
  void ScanChosenBlocks();
  // Scans blocks [block, block_end) of the current range. mean_dots, prefetch_bytes: see codes::BlockSpan.
  void ScanBlocks(int64_t block, int64_t block_end, const float* mean_dots, int64_t prefetch_bytes,
                  codes::HitCallback on_hits);

  // Sets min_dot of the queries whose ranking decays, by the least penalty of the rows at places [place, place_end) of
  // the current range's codes.
  void SetMinDotsForPenalties(int64_t place, int64_t place_end);
  // The least dot product of a row in the current range that may be among the query's k best.
  float MinDot(int64_t query);
  // A logit that row `row` of the current range very likely reaches; -infinity if there is no estimate.
  float EstimateLogit(const Ranking& ranking, const codes::DotBound& bound, float rounding_error, int64_t row) const;

  // Called for the rows that may reach min_dot, in a sampled block and in any other block.
  void OnSampleHits(codes::Query& query, const codes::BlockHits& hits);
  void OnHits(codes::Query& query, const codes::BlockHits& hits);

  ScanState& state_;
  Reranker& reranker_;
  const codes::Kernels* kernels_ = nullptr;
  CodedQueries queries_;
  int64_t coded_dim_ = 0;
  size_t range_ = 0;         // the current range
  bool decays_ = false;      // whether some query's ranking of the current range decays
  int64_t sample_hits_ = 0;  // hits in the sampled blocks so far, of all queries
};

}  // namespace mneme

#endif  // MNEME_INDEX_SCAN_BLOCK_SCAN_H_
