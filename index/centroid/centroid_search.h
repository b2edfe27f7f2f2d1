// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_CENTROID_CENTROID_SEARCH_H_
#define MNEME_INDEX_CENTROID_CENTROID_SEARCH_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

#include "index/centroid/centroid_index.h"
#include "index/centroid/code_scorer.h"
#include "index/key_source.h"
#include "index/scan/code_scan.h"
#include "index/scan/ranking.h"
#include "index/top_k.h"

namespace mneme {

// What to search for in a CentroidIndex. Rows have the index's numbers everywhere.
struct CentroidQuery {
  const float* queries;  // f32 [count, dim]; all probe the clusters that any of them wants
  int64_t count;
  const Ranking* rankings;  // [count]. Requires: RisesWithDot()
  KeySource* keys;          // exact keys, by row
  int64_t row_begin;        // other rows than [row_begin, row_end) are not found
  int64_t row_end;
  int64_t first_token;  // token index of row 0
  TopK* top;            // [count], receives the best rows
};

// What a search did.
struct CentroidCounts {
  ScanCounts scan;
  int64_t probed = 0;    // pairs of a query and a row whose code was read …
  int64_t searched = 0;  // … of so many pairs
};

// Finds the best rows of a CentroidIndex cluster by cluster, the most promising first, until those that are left are
// estimated to hold at most shape().max_miss of the attention of the k best rows, or until shape().max_share of the
// rows are scanned (docs/design/centroid.md). With max_miss 0 every row is scanned and the result is that of the exact
// scan, bit for bit. Deterministic. Keeps its memory. Not thread-safe.
class CentroidSearch {
 public:
  // Errors: those of the KeySource, after which `top` means nothing.
  absl::Status Run(const CentroidIndex& index, const CentroidQuery& query, CentroidCounts* counts);

  // [count] of the last Run: for each query the estimated share of the attention of the k best rows that was missed.
  absl::Span<const float> missed() const { return missed_; }
  // [count]: what it is at most, for at least 95 % of the queries.
  absl::Span<const float> missed_at_most() const { return missed_at_most_; }

 private:
  // A cluster that is to be probed.
  struct Wanted {
    float gain;  // estimated attention a row, as a share of what the query has found
    int32_t cluster;
  };

  // Clusters that may hold rows above a threshold. The first `size` entries are in use.
  struct CandidateClusters {
    std::vector<int32_t> clusters;
    std::vector<float> rows, distances, spreads;  // as AttentionAbove takes them
    std::vector<float> attention, gains;          // of all rows, and of one: in units of exp(threshold)
    size_t size = 0;

    void Reserve(size_t n);
  };

  void ScoreCentroids();
  // The query's dot products with the centroids.
  const float* Dots(int64_t query) const { return dots_.data() + query * index_->parts().centroids->rows(); }
  float Penalty(const Ranking& ranking, int64_t cluster) const;

  // Mark blocks for the next scan.
  void WantPlaces(int64_t begin, int64_t end);
  void WantCluster(int64_t cluster) {
    const auto c = static_cast<size_t>(cluster);
    WantPlaces(index_->parts().begins[c], index_->parts().begins[c + 1]);
  }
  void WantAll() { WantPlaces(0, index_->parts().places()); }
  void WantFirstClusters();

  // Fills candidates_.
  void FindCandidates(int64_t query, double threshold);
  // Estimates missed_ and adds to wanted_ what has to be probed for it to be small enough.
  void Estimate(int64_t query);
  // Marks the blocks of wanted_, the greatest gains first, as far as max_share allows. Returns: whether there are any.
  bool WantClusters();

  absl::Status ScanWanted(CentroidCounts* counts);
  bool IsScanned(int64_t cluster) const;
  bool AllIsScanned() const { return scanned_blocks_ == static_cast<int64_t>(scanned_.size()); }

  const CentroidIndex* index_ = nullptr;
  const CentroidQuery* query_ = nullptr;
  CodeScorer scorer_;
  CodeScan scan_;
  std::vector<float> dots_;            // [count][first_sample + kSpreadSamples]: queries and centroids, then residuals
  std::vector<float> spreads_;         // [count]: standard deviation of the dot products with rows of radius 1
  std::vector<uint8_t> scanned_;       // [blocks], those of want_ included
  std::vector<int32_t> want_;          // numbers of the blocks to scan next
  std::vector<BlockRange> blocks_;     // the same, as scans take them
  std::vector<float> keys_;            // [clusters], temporary
  CandidateClusters candidates_;       // of one query
  std::vector<Wanted> wanted_;         // of all queries
  std::vector<float> missed_;          // [count]
  std::vector<float> missed_at_most_;  // [count]
  int64_t scanned_blocks_ = 0;
};

}  // namespace mneme

#endif  // MNEME_INDEX_CENTROID_CENTROID_SEARCH_H_
