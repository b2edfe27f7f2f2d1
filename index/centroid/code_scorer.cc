// SPDX-License-Identifier: Apache-2.0
#include "index/centroid/code_scorer.h"

#include <algorithm>
#include <limits>

#include "index/scan/dot_bound.h"

namespace mneme {
namespace {

// What takes the place of a product that is too large or not a number, so that sums of products stay finite.
constexpr float kMostDot = 1e30f;

struct Dots {
  float* data;
  int64_t stride;
};

void OnHits(void* context, codes::Query& query, const codes::BlockHits& hits) {
  const Dots& to = *static_cast<const Dots*>(context);
  float* const dots = to.data + hits.query * to.stride + hits.first_row;
  for (int r = 0; r < static_cast<int>(KeyCodes::kBlockRows); ++r) {
    const float dot = codes::BoundDot(query, hits, r).estimate;
    // False for NaN, too.
    dots[r] = dot < kMostDot ? (dot > -kMostDot ? dot : -kMostDot) : kMostDot;
  }
}

}  // namespace

void CodeScorer::Begin(const float* queries, int64_t count, const KeyCodes& codes) {
  kernels_ = &codes::CurrentKernels();
  count_ = count;
  queries_.Encode(*kernels_, queries, count, codes.dim(), codes.coded_dim());
  // Every row is a hit.
  for (int64_t i = 0; i < count; ++i) queries_[i].min_dot = -std::numeric_limits<float>::infinity();
}

void CodeScorer::Score(const KeyCodes& codes, absl::Span<const BlockRange> blocks, float* dots, int64_t stride) {
  Dots to = {dots, stride};
  MeanDots& mean_dots = queries_.mean_dots();
  const auto chunks_of = [&](size_t first, MeanDots::Chunk* chunks) {
    const size_t n = std::min<size_t>(MeanDots::kChunks, first < blocks.size() ? blocks.size() - first : 0);
    for (size_t i = 0; i < n; ++i) {
      chunks[i] = {.codes = &codes, .row = blocks[first + i].begin * KeyCodes::kBlockRows};
    }
    return absl::MakeConstSpan(chunks, n);
  };
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (i % MeanDots::kChunks == 0) {
      MeanDots::Chunk now[MeanDots::kChunks], next[MeanDots::kChunks];
      mean_dots.Compute(chunks_of(i, now), chunks_of(i + MeanDots::kChunks, next));
    }
    for (int64_t block = blocks[i].begin; block < blocks[i].end;) {
      int64_t contiguous;
      const char* const data = codes.Blocks(block * KeyCodes::kBlockRows, &contiguous);
      const codes::BlockSpan span = {
          .blocks = data,
          .count = std::min(contiguous, blocks[i].end - block),
          .first_row = block * KeyCodes::kBlockRows,
          .prefetch_bytes = 0,
          .mean_dots = mean_dots.UpperBounds(static_cast<int64_t>(i % MeanDots::kChunks)),
          .mean_dot_stride = mean_dots.stride(),
      };
      kernels_->scan(span, codes.coded_dim(), queries_.values(), queries_.data(), count_, &OnHits, &to);
      block += span.count;
    }
  }
}

void AppendByChunk(int64_t begin, int64_t end, std::vector<BlockRange>& blocks) {
  while (begin < end) {
    const int64_t chunk_end = (begin / codes::kChunkBlocks + 1) * codes::kChunkBlocks;
    blocks.push_back({begin, std::min(end, chunk_end)});
    begin = blocks.back().end;
  }
}

}  // namespace mneme
