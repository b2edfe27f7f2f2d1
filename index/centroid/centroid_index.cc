// SPDX-License-Identifier: Apache-2.0
#include "index/centroid/centroid_index.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/status.h"
#include "index/centroid/code_scorer.h"
#include "index/faiss/faiss_call.h"
#include "index/top_k.h"

namespace mneme {
namespace {

// Searches by codes alone.
class CodeSearch {
 public:
  CodeSearch(const CentroidIndex& index, const float* query) : index_(index), parts_(index.parts()) {
    scorer_.Begin(query, 1, *parts_.codes);
  }

  void Run(int64_t fetch, int64_t* found) {
    ChooseBlocks(fetch);
    TopK best(fetch);
    std::vector<float> dots(static_cast<size_t>(parts_.places()));
    scorer_.Score(*parts_.codes, blocks_, dots.data(), parts_.places());
    for (const BlockRange& range : blocks_) {
      for (int64_t place = range.begin * KeyCodes::kBlockRows; place < range.end * KeyCodes::kBlockRows; ++place) {
        const int32_t row = parts_.row_numbers[static_cast<size_t>(place)];
        if (row >= 0) best.Push(dots[static_cast<size_t>(place)], row);
      }
    }
    std::fill_n(found, fetch, int64_t{-1});
    for (const Scored& row : best.Sorted()) *found++ = row.index;
  }

 private:
  void ChooseBlocks(int64_t fetch) {
    const auto enough = static_cast<int64_t>(std::max(static_cast<double>(index_.shape().max_share), 0.01) *
                                             static_cast<double>(index_.rows()));
    std::vector<bool> chosen(static_cast<size_t>(parts_.places() / KeyCodes::kBlockRows));
    if (index_.shape().max_miss == 0 || fetch >= enough) {
      AppendByChunk(0, static_cast<int64_t>(chosen.size()), blocks_);
      return;
    }
    const auto choose = [&](int64_t begin, int64_t end) {
      for (int64_t block = begin / KeyCodes::kBlockRows; block * KeyCodes::kBlockRows < end; ++block) {
        chosen[static_cast<size_t>(block)] = true;
      }
    };
    choose(0, parts_.outliers);
    std::vector<float> keys(static_cast<size_t>(parts_.first_sample()));
    AppendByChunk(0, parts_.first_sample() / KeyCodes::kBlockRows, blocks_);
    scorer_.Score(*parts_.centroids, blocks_, keys.data(), parts_.first_sample());
    std::vector<int32_t> order(static_cast<size_t>(index_.clusters()));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return keys[static_cast<size_t>(a)] > keys[static_cast<size_t>(b)]; });
    int64_t rows = 0;
    for (size_t i = 0; i < order.size() && rows < enough; ++i) {
      const auto c = static_cast<size_t>(order[i]);
      choose(parts_.begins[c], parts_.begins[c + 1]);
      rows += index_.ClusterRows(order[i]);
    }
    blocks_.clear();
    for (size_t block = 0; block < chosen.size(); ++block) {
      if (chosen[block]) blocks_.push_back({static_cast<int64_t>(block), static_cast<int64_t>(block) + 1});
    }
  }

  const CentroidIndex& index_;
  const CentroidIndex::Parts& parts_;
  CodeScorer scorer_;
  std::vector<BlockRange> blocks_;
};

}  // namespace

CentroidShape ResolveCentroidShape(const IndexSpec& spec) {
  CentroidShape shape;
  if (spec.cluster_rows > 0) shape.cluster_rows = spec.cluster_rows;
  if (spec.outliers >= 0) shape.outliers = spec.outliers;
  if (spec.max_miss >= 0) shape.max_miss = spec.max_miss;
  if (spec.max_share >= 0) shape.max_share = spec.max_share;
  return shape;
}

CentroidIndex::CentroidIndex(const CentroidShape& shape, Parts parts) : shape_(shape), parts_(std::move(parts)) {
  youngest_rows_.reserve(parts_.radii.size());
  for (size_t c = 0; c < parts_.radii.size(); ++c) {
    youngest_rows_.push_back(*std::max_element(parts_.row_numbers.begin() + parts_.begins[c],
                                               parts_.row_numbers.begin() + parts_.begins[c + 1]));
  }
}

absl::Status CentroidIndex::Search(const float* queries, int64_t count, int64_t fetch, int64_t* found) const {
  MNEME_RETURN_IF_ERROR(CheckSearch(queries, count, fetch, dim()));
  if (fetch == 0) return absl::OkStatus();
  return CallFaiss("centroid", [&] {
    for (int64_t i = 0; i < count; ++i) CodeSearch(*this, queries + i * dim()).Run(fetch, found + i * fetch);
  });
}

size_t CentroidIndex::MemoryBytes() const {
  return sizeof(*this) + (parts_.row_numbers.size() + parts_.begins.size() + youngest_rows_.size()) * sizeof(int32_t) +
         parts_.radii.size() * sizeof(float) + parts_.codes->MemoryBytes() + parts_.centroids->MemoryBytes();
}

}  // namespace mneme
