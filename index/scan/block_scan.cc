// SPDX-License-Identifier: Apache-2.0
#include "index/scan/block_scan.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace mneme {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kBlockRows = KeyCodes::kBlockRows;
constexpr int64_t kChunkRows = KeyCodes::kChunkRows;

// The sample ends after kTrialBlocks blocks if fewer than one in kTrialShare of their rows was a hit: then the
// thresholds known from the start are good, and the rest of the sample would cost more than it saves.
constexpr int64_t kTrialBlocks = 8;
constexpr int64_t kTrialShare = 8;

// While a sampled block is scanned, the block this many places after it is prefetched.
constexpr int64_t kSamplePrefetch = 4;
// The same for the chosen blocks of reordered rows, counted in BlockRanges.
constexpr int64_t kPartPrefetch = 2;

// A row very likely reaches its estimate less this share of the margin. The margin covers an error in the worst
// direction; an error in a random direction is about sqrt(dim) times smaller.
constexpr float kLikelyMarginShare = 0.25f;

// The HitCallback that calls a member function; context: the BlockScan.
template <auto kMember>
struct Callback;
template <typename Scan, void (Scan::*kMember)(codes::Query&, const codes::BlockHits&)>
struct Callback<kMember> {
  static void Call(void* context, codes::Query& query, const codes::BlockHits& hits) {
    (static_cast<Scan*>(context)->*kMember)(query, hits);
  }
};

}  // namespace

void BlockScan::Run(const codes::Kernels& kernels, bool use_sample) {
  kernels_ = &kernels;
  coded_dim_ = state_.ranges.front().codes->coded_dim();
  queries_.Encode(kernels, state_.queries, state_.count, state_.dim, coded_dim_);
  const int64_t chunks = NumberChunks();
  if (use_sample) ScanSample(SampledBlocks(chunks));
  for (size_t range = 0; range < state_.ranges.size(); ++range) {
    BeginRange(range);
    if (state_.ranges[range].row_numbers == nullptr) {
      ScanRange();
    } else {
      ScanChosenBlocks();
    }
  }
}

int64_t BlockScan::NumberChunks() {
  int64_t chunks = 0;
  for (CodedRange& range : state_.ranges) {
    range.chunk_offset = chunks - range.FirstWholeChunk();
    chunks += range.WholeChunksEnd() - range.FirstWholeChunk();
  }
  return chunks;
}

void BlockScan::ScanSample(const SampledBlocks& sample) {
  for (int64_t i = 0; i < state_.count; ++i) {
    const int64_t k = state_.top[i].k();
    if (!sample.EnoughFor(k)) return;
    state_.Progress(i).sample.Reset(sample.Rank(k));
  }
  MeanDots& mean_dots = queries_.mean_dots();
  sample_hits_ = 0;
  BeginRange(0);
  for (int64_t i = 0; i < sample.size(); ++i) {
    if (i == kTrialBlocks && sample_hits_ * kTrialShare < i * kBlockRows * state_.count) break;
    const SampledBlock sampled = FindSampled(sample, i, range_);
    if (sampled.range != range_) BeginRange(sampled.range);
    if (i % MeanDots::kChunks == 0) {
      MeanDots::Chunk now[MeanDots::kChunks], next[MeanDots::kChunks];
      mean_dots.Compute(ChunksOfSample(sample, i, range_, now),
                        ChunksOfSample(sample, i + MeanDots::kChunks, range_, next));
    }
    const int64_t chunk_row = sampled.block * kBlockRows / kChunkRows * kChunkRows;
    if (decays_) SetMinDotsForPenalties(chunk_row, chunk_row + kChunkRows);
    const char* const ahead = FindSampled(sample, i + kSamplePrefetch, range_).data;
    ScanBlocks(sampled.block, sampled.block + 1, mean_dots.UpperBounds(i % MeanDots::kChunks),
               reinterpret_cast<intptr_t>(ahead) - reinterpret_cast<intptr_t>(sampled.data),
               &Callback<&BlockScan::OnSampleHits>::Call);
  }
}

BlockScan::SampledBlock BlockScan::FindSampled(const SampledBlocks& sample, int64_t i, size_t range) const {
  i = std::min(i, sample.size() - 1);
  const std::vector<CodedRange>& ranges = state_.ranges;
  const int64_t chunk = sample.Chunk(i);
  while (ranges[range].chunk_offset + ranges[range].WholeChunksEnd() <= chunk) ++range;
  const int64_t block = (chunk - ranges[range].chunk_offset) * codes::kChunkBlocks + SampledBlocks::PlaceInChunk(i);
  int64_t contiguous;
  return {.range = range, .block = block, .data = ranges[range].codes->Blocks(block * kBlockRows, &contiguous)};
}

absl::Span<const MeanDots::Chunk> BlockScan::ChunksOfSample(const SampledBlocks& sample, int64_t i, size_t range,
                                                            MeanDots::Chunk (&chunks)[MeanDots::kChunks]) const {
  const int64_t n = std::clamp<int64_t>(sample.size() - i, 0, MeanDots::kChunks);
  for (int64_t j = 0; j < n; ++j) {
    const SampledBlock sampled = FindSampled(sample, i + j, range);
    chunks[j] = {.codes = state_.ranges[sampled.range].codes, .row = sampled.block * kBlockRows};
  }
  return absl::MakeConstSpan(chunks, static_cast<size_t>(n));
}

void BlockScan::BeginRange(size_t range) {
  range_ = range;
  decays_ = false;
  for (int64_t i = 0; i < state_.count; ++i) {
    state_.Progress(i).min_penalty = 0;
    queries_[i].min_dot = MinDot(i);
    decays_ |= state_.RankingOf(i, range).decay != 0;
  }
}

void BlockScan::ScanRange() {
  const CodedRange& range = state_.ranges[range_];
  MeanDots& mean_dots = queries_.mean_dots();
  // With decay, min_dot changes from chunk to chunk.
  const int64_t step = decays_ ? 1 : MeanDots::kChunks;
  const int64_t chunks_end = (range.row_end + kChunkRows - 1) / kChunkRows;
  const auto chunks_from = [&](int64_t chunk, MeanDots::Chunk* chunks) {
    const int64_t n = std::clamp<int64_t>(chunks_end - chunk, 0, step);
    for (int64_t i = 0; i < n; ++i) chunks[i] = {.codes = range.codes, .row = (chunk + i) * kChunkRows};
    return absl::MakeConstSpan(chunks, static_cast<size_t>(n));
  };
  for (int64_t chunk = range.row_begin / kChunkRows; chunk < chunks_end; chunk += step) {
    MeanDots::Chunk now[MeanDots::kChunks], next[MeanDots::kChunks];
    mean_dots.Compute(chunks_from(chunk, now), chunks_from(chunk + step, next));
    const int64_t row = std::max(range.row_begin, chunk * kChunkRows);
    const int64_t row_end = std::min(range.row_end, (chunk + step) * kChunkRows);
    if (decays_) SetMinDotsForPenalties(row, row_end);
    ScanBlocks(row / kBlockRows, (row_end + kBlockRows - 1) / kBlockRows, mean_dots.UpperBounds(0),
               /*prefetch_bytes=*/0, &Callback<&BlockScan::OnHits>::Call);
  }
}

void BlockScan::ScanChosenBlocks() {
  const CodedRange& range = state_.ranges[range_];
  const auto parts = static_cast<int64_t>(range.blocks.size());
  MeanDots& mean_dots = queries_.mean_dots();
  const auto part = [&](int64_t i) -> const BlockRange& { return range.blocks[static_cast<size_t>(i)]; };
  const auto data = [&](int64_t i) {
    int64_t contiguous;
    return reinterpret_cast<intptr_t>(range.codes->Blocks(part(i).begin * kBlockRows, &contiguous));
  };
  const auto chunks_of = [&](int64_t first, MeanDots::Chunk* chunks) {
    const int64_t n = std::clamp<int64_t>(parts - first, 0, MeanDots::kChunks);
    for (int64_t i = 0; i < n; ++i) chunks[i] = {.codes = range.codes, .row = part(first + i).begin * kBlockRows};
    return absl::MakeConstSpan(chunks, static_cast<size_t>(n));
  };
  for (int64_t i = 0; i < parts; ++i) {
    if (i % MeanDots::kChunks == 0) {
      MeanDots::Chunk now[MeanDots::kChunks], next[MeanDots::kChunks];
      mean_dots.Compute(chunks_of(i, now), chunks_of(i + MeanDots::kChunks, next));
    }
    const auto [block, block_end] = part(i);
    if (decays_) SetMinDotsForPenalties(block * kBlockRows, block_end * kBlockRows);
    // Each block prefetches a block at the same distance as the BlockRange to come.
    const int64_t ahead = std::min(parts - 1, i + kPartPrefetch);
    ScanBlocks(block, block_end, mean_dots.UpperBounds(i % MeanDots::kChunks), data(ahead) - data(i),
               &Callback<&BlockScan::OnHits>::Call);
  }
}

void BlockScan::ScanBlocks(int64_t block, int64_t block_end, const float* mean_dots, int64_t prefetch_bytes,
                           codes::HitCallback on_hits) {
  const int64_t stride = queries_.mean_dots().stride();
  while (block < block_end) {
    int64_t contiguous;
    const char* blocks = state_.ranges[range_].codes->Blocks(block * kBlockRows, &contiguous);
    const int64_t n = std::min(contiguous, block_end - block);
    const codes::BlockSpan span = {
        .blocks = blocks,
        .count = n,
        .first_row = block * kBlockRows,
        .prefetch_bytes = prefetch_bytes,
        .mean_dots = mean_dots,
        .mean_dot_stride = stride,
    };
    kernels_->scan(span, coded_dim_, queries_.values(), queries_.data(), state_.count, on_hits, this);
    mean_dots += ((block + n) / codes::kChunkBlocks - block / codes::kChunkBlocks) * stride;
    block += n;
  }
}

void BlockScan::SetMinDotsForPenalties(int64_t place, int64_t place_end) {
  const CodedRange& range = state_.ranges[range_];
  for (int64_t i = 0; i < state_.count; ++i) {
    const Ranking& ranking = state_.RankingOf(i, range_);
    if (ranking.decay == 0) continue;
    float least = kInfinity;
    if (range.row_numbers == nullptr) {
      least = *std::min_element(ranking.row_penalty + place, ranking.row_penalty + place_end);
    } else {
      // Blocks may hold rows before and behind the range.
      for (int64_t p = place; p < place_end; ++p) {
        if (range.HasRow(range.Row(p))) least = std::min(least, ranking.row_penalty[range.Row(p)]);
      }
    }
    state_.Progress(i).min_penalty = least;
    queries_[i].min_dot = MinDot(i);
  }
}

float BlockScan::MinDot(int64_t query) {
  const QueryProgress& progress = state_.Progress(query);
  const float threshold = std::max(state_.Threshold(query), progress.candidates.estimated_threshold());
  return state_.RankingOf(query, range_).MinDot(threshold, progress.min_penalty);
}

float BlockScan::EstimateLogit(const Ranking& ranking, const codes::DotBound& bound, float rounding_error,
                               int64_t row) const {
  const float dot = bound.estimate - 2 * rounding_error - bound.margin * kLikelyMarginShare;
  const float logit = ranking.Logit(dot, row);
  return logit != logit ? -kInfinity : logit;
}

void BlockScan::OnSampleHits(codes::Query& query, const codes::BlockHits& hits) {
  QueryProgress& progress = state_.Progress(hits.query);
  const Ranking& ranking = state_.RankingOf(hits.query, range_);
  const float rounding_error =
      queries_.mean_dots().RoundingError(hits.query, {state_.ranges[range_].codes, hits.first_row});
  sample_hits_ += std::popcount(hits.rows);
  float best = -kInfinity;
  for (uint32_t rows = hits.rows; rows != 0; rows &= rows - 1) {
    const int r = std::countr_zero(rows);
    best = std::max(best, EstimateLogit(ranking, BoundDot(query, hits, r), rounding_error, hits.first_row + r));
  }
  progress.sample.Push(best, hits.first_row);
  if (!(progress.sample.threshold() > progress.candidates.estimated_threshold())) return;
  progress.candidates.RaiseEstimatedThreshold(progress.sample.threshold());
  query.min_dot = MinDot(hits.query);
}

void BlockScan::OnHits(codes::Query& query, const codes::BlockHits& hits) {
  Candidates& candidates = state_.Progress(hits.query).candidates;
  const Ranking& ranking = state_.RankingOf(hits.query, range_);
  const CodedRange& range = state_.ranges[range_];
  const float threshold = std::max(state_.Threshold(hits.query), candidates.estimated_threshold());
  const float rounding_error = queries_.mean_dots().RoundingError(hits.query, {range.codes, hits.first_row});
  for (uint32_t rows = hits.rows; rows != 0; rows &= rows - 1) {
    const int r = std::countr_zero(rows);
    const int64_t place = hits.first_row + r;
    const int64_t row = range.Row(place);
    if (!range.HasRow(row)) continue;
    const codes::DotBound bound = BoundDot(query, hits, r);
    float upper_bound = ranking.MaxLogit(bound.estimate + bound.margin, row);
    // The threshold may have risen since the kernel compared the row.
    if (upper_bound < threshold) continue;
    if (upper_bound != upper_bound) upper_bound = kInfinity;
    candidates.Add({.row = place,
                    .range = static_cast<int32_t>(range_),
                    .estimate = EstimateLogit(ranking, bound, rounding_error, row),
                    .upper_bound = upper_bound});
  }
  if (!candidates.ShouldPrune()) return;
  candidates.Prune(state_.Threshold(hits.query));
  if (candidates.Crowded()) reranker_.Rerank(hits.query, candidates.MostPromisingFirst());
  query.min_dot = MinDot(hits.query);
}

}  // namespace mneme
