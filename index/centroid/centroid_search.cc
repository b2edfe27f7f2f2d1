// SPDX-License-Identifier: Apache-2.0
#include "index/centroid/centroid_search.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/status.h"
#include "index/centroid/miss_estimate.h"

namespace mneme {
namespace {

constexpr int64_t kBlockRows = KeyCodes::kBlockRows;

// The first scan gives a threshold, without which nothing can be estimated. For each query it reads this share of the
// rows, at least so many, and at least so many for each row to retrieve.
constexpr double kFirstShare = 1.0 / 256;
constexpr int64_t kFewestFirstRows = 256;
constexpr int64_t kFirstRowsPerResult = 4;

// max_share does not stop a search before it has read so many rows.
constexpr int64_t kFewestMostRows = 1024;

// Rows so many standard deviations below the threshold count as none.
constexpr float kMostDistance = 5;

// Scans of a search. Two are the rule: the estimate falls while the threshold rises.
constexpr int kMostRounds = 4;

// Returns: a value that at least `wanted` of `values` reach, and not many more if they differ.
float FindBar(absl::Span<const float> values, size_t wanted) {
  constexpr int kSteps = 16;
  float low = values.front(), high = values.front();
  for (const float value : values) {
    low = value < low ? value : low;
    high = value > high ? value : high;
  }
  for (int step = 0; step < kSteps; ++step) {
    const float middle = low + (high - low) / 2;
    int32_t count = 0;
    for (const float value : values) count += value >= middle ? 1 : 0;
    const bool enough = static_cast<size_t>(count) >= wanted;
    (enough ? low : high) = middle;
    if (enough && static_cast<size_t>(count) <= wanted + wanted / 8) break;
  }
  return low;
}

// Returns: a gain such that the clusters of lesser gains have at most `allowed` of the attention, nearly the greatest
// such gain. gains: not negative.
float FindGainBar(absl::Span<const float> gains, absl::Span<const float> attention, double allowed) {
  constexpr int kSteps = 14;
  // Numbers that are not negative are in the order of their bits, by which bisection takes them on a logarithmic scale.
  uint32_t low = 0, high = std::bit_cast<uint32_t>(std::numeric_limits<float>::max());
  for (int step = 0; step < kSteps; ++step) {
    const uint32_t middle = low + (high - low) / 2;
    const auto bar = std::bit_cast<float>(middle);
    float below[4] = {};  // sums that do not wait for each other
    size_t i = 0;
    for (; i + 4 <= gains.size(); i += 4) {
      for (size_t j = 0; j < 4; ++j) below[j] += gains[i + j] < bar ? attention[i + j] : 0.0f;
    }
    for (; i < gains.size(); ++i) below[0] += gains[i] < bar ? attention[i] : 0.0f;
    (below[0] + below[1] + below[2] + below[3] <= allowed ? low : high) = middle;
  }
  return std::bit_cast<float>(low);
}

// What a row needs to reach a threshold.
struct Needed {
  double dot;   // infinity: no dot product is enough
  float slope;  // of the logit by the dot product there
};

// penalty: of the row. Requires: the threshold is finite, ranking.RisesWithDot().
Needed NeededDot(const Ranking& ranking, double threshold, float penalty) {
  const double scale = ranking.scale;
  const double needed = threshold - ranking.addend + static_cast<double>(ranking.decay) * penalty;
  if (ranking.soft_cap <= 0) return {needed / scale, ranking.scale};
  const double ratio = needed / ranking.soft_cap;
  if (ratio >= 1) return {std::numeric_limits<double>::infinity(), 0};
  const double inner = std::max(ratio, -0.999999);
  return {ranking.soft_cap * std::atanh(inner) / scale, static_cast<float>((1 - inner * inner) * scale)};
}

}  // namespace

absl::Status CentroidSearch::Run(const CentroidIndex& index, const CentroidQuery& query, CentroidCounts* counts) {
  index_ = &index;
  query_ = &query;
  missed_.assign(static_cast<size_t>(query.count), 0.0f);
  missed_at_most_.assign(static_cast<size_t>(query.count), 0.0f);
  scanned_.assign(static_cast<size_t>(index.parts().places() / kBlockRows), 0);
  scanned_blocks_ = 0;
  want_.clear();
  counts->searched += query.count * index.rows();
  if (index.shape().max_miss == 0) {
    WantAll();
    return ScanWanted(counts);
  }
  ScoreCentroids();
  WantPlaces(0, index.parts().outliers);
  WantFirstClusters();
  for (int round = 1;; ++round) {
    MNEME_RETURN_IF_ERROR(ScanWanted(counts));
    if (AllIsScanned()) {
      std::fill(missed_.begin(), missed_.end(), 0.0f);
      std::fill(missed_at_most_.begin(), missed_at_most_.end(), 0.0f);
      return absl::OkStatus();
    }
    const auto full = [](const TopK& top) { return top.threshold() > -std::numeric_limits<float>::infinity(); };
    if (!std::all_of(query.top, query.top + query.count, full)) {
      WantAll();  // few rows are visible
      continue;
    }
    wanted_.clear();
    for (int64_t q = 0; q < query.count; ++q) Estimate(q);
    if (round >= kMostRounds || !WantClusters()) return absl::OkStatus();
  }
}

void CentroidSearch::ScoreCentroids() {
  const CentroidIndex::Parts& parts = index_->parts();
  const int64_t count = query_->count, first_sample = parts.first_sample(), stride = parts.centroids->rows();
  dots_.resize(static_cast<size_t>(count * stride));
  spreads_.resize(static_cast<size_t>(count));
  scorer_.Begin(query_->queries, count, *parts.centroids);
  blocks_.clear();
  AppendByChunk(0, (index_->clusters() + kBlockRows - 1) / kBlockRows, blocks_);
  AppendByChunk(first_sample / kBlockRows, stride / kBlockRows, blocks_);
  scorer_.Score(*parts.centroids, blocks_, dots_.data(), stride);
  for (int64_t q = 0; q < count; ++q) {
    const float* const samples = dots_.data() + q * stride + first_sample;
    double squares = 0;
    for (int64_t i = 0; i < CentroidIndex::kSpreadSamples; ++i) squares += static_cast<double>(samples[i]) * samples[i];
    spreads_[static_cast<size_t>(q)] =
        static_cast<float>(std::sqrt(squares / static_cast<double>(CentroidIndex::kSpreadSamples)));
  }
}

float CentroidSearch::Penalty(const Ranking& ranking, int64_t cluster) const {
  const int64_t youngest = index_->youngest_rows()[static_cast<size_t>(cluster)];
  return ranking.row_penalty[std::clamp(youngest, query_->row_begin, query_->row_end - 1)];
}

void CentroidSearch::WantPlaces(int64_t begin, int64_t end) {
  for (int64_t block = begin / kBlockRows; block * kBlockRows < end; ++block) {
    if (scanned_[static_cast<size_t>(block)] != 0) continue;
    scanned_[static_cast<size_t>(block)] = 1;
    want_.push_back(static_cast<int32_t>(block));
  }
}

void CentroidSearch::WantFirstClusters() {
  const auto clusters = static_cast<size_t>(index_->clusters());
  const float* const radii = index_->parts().radii.data();
  keys_.resize(clusters);
  float* const keys = keys_.data();
  for (int64_t q = 0; q < query_->count; ++q) {
    const float* const dots = Dots(q);
    const float spread = spreads_[static_cast<size_t>(q)];
    const Ranking& ranking = query_->rankings[q];
    for (size_t c = 0; c < clusters; ++c) keys[c] = dots[c] + spread * radii[c];
    if (ranking.decay != 0) {
      for (size_t c = 0; c < clusters; ++c) {
        keys[c] -= ranking.decay * Penalty(ranking, static_cast<int64_t>(c)) / ranking.scale;
      }
    }
    const double rows =
        std::max(kFirstShare * static_cast<double>(index_->rows()),
                 static_cast<double>(std::max(kFewestFirstRows, kFirstRowsPerResult * query_->top[q].k())));
    const double wanted = std::ceil(rows * static_cast<double>(clusters) / static_cast<double>(index_->rows()));
    const float bar = FindBar(keys_, static_cast<size_t>(std::clamp(wanted, 1.0, static_cast<double>(clusters))));
    for (size_t c = 0; c < clusters; ++c) {
      if (keys[c] >= bar) WantCluster(static_cast<int64_t>(c));
    }
  }
}

bool CentroidSearch::IsScanned(int64_t cluster) const {
  const auto c = static_cast<size_t>(cluster);
  for (int64_t block = index_->parts().begins[c] / kBlockRows; block * kBlockRows < index_->parts().begins[c + 1];
       ++block) {
    if (scanned_[static_cast<size_t>(block)] == 0) return false;
  }
  return true;
}

void CentroidSearch::CandidateClusters::Reserve(size_t n) {
  if (clusters.size() >= n) return;
  clusters.resize(n);
  for (std::vector<float>* numbers : {&rows, &distances, &spreads, &attention, &gains}) numbers->resize(n);
}

// The attention is estimated with the soft cap replaced by its tangent at the threshold.
void CentroidSearch::FindCandidates(int64_t query, double threshold) {
  const Ranking& ranking = query_->rankings[query];
  const float* const dots = Dots(query);
  const float* const radii = index_->parts().radii.data();
  const auto clusters = static_cast<size_t>(index_->clusters());
  const float spread_of_one = spreads_[static_cast<size_t>(query)];
  candidates_.Reserve(clusters);
  int32_t* const numbers = candidates_.clusters.data();
  // Penalties are never below 0.
  const auto least = static_cast<float>(NeededDot(ranking, threshold, 0).dot);
  size_t possible = 0;
  for (size_t c = 0; c < clusters; ++c) {
    numbers[possible] = static_cast<int32_t>(c);
    possible += dots[c] + (kMostDistance * spread_of_one) * radii[c] > least ? 1 : 0;
  }
  size_t n = 0;
  for (size_t i = 0; i < possible; ++i) {
    const int32_t cluster = numbers[i];
    if (IsScanned(cluster)) continue;
    const Needed need = NeededDot(ranking, threshold, ranking.decay != 0 ? Penalty(ranking, cluster) : 0);
    const float spread = std::max(spread_of_one * radii[static_cast<size_t>(cluster)], 1e-9f);
    const auto distance = static_cast<float>((need.dot - dots[cluster]) / spread);
    if (!(distance < kMostDistance)) continue;
    numbers[n] = cluster;
    candidates_.rows[n] = static_cast<float>(index_->ClusterRows(cluster));
    candidates_.distances[n] = distance;
    candidates_.spreads[n++] = need.slope * spread;
  }
  candidates_.size = n;
}

void CentroidSearch::Estimate(int64_t query) {
  TopK& top = query_->top[query];
  const double threshold = top.threshold();
  // Either k is 0, or logits overflowed and nothing can be estimated.
  if (!std::isfinite(threshold)) return;
  FindCandidates(query, threshold);
  const size_t n = candidates_.size;
  float* const attention = candidates_.attention.data();
  float* const gains = candidates_.gains.data();
  for (size_t i = 0; i < n; ++i) {
    const float rows = candidates_.rows[i];
    attention[i] = AttentionAbove(rows, candidates_.distances[i], candidates_.spreads[i]);
    gains[i] = attention[i] / rows;
  }
  double found = 0, left = 0;
  for (const Scored& row : top.Sorted()) found += std::exp(std::min(row.score - threshold, 700.0));
  for (size_t i = 0; i < n; ++i) left += attention[i];
  const auto missed = static_cast<float>(left / (found + left));
  missed_[static_cast<size_t>(query)] = missed;
  missed_at_most_[static_cast<size_t>(query)] = MissBound95(missed, static_cast<float>(1 / (found + left)));
  const double max_miss = index_->shape().max_miss;
  const double allowed = max_miss < 1 ? found * max_miss / (1 - max_miss) : left;
  if (left <= allowed) return;
  // The least gains are left out.
  const float bar = FindGainBar(absl::MakeConstSpan(gains, n), absl::MakeConstSpan(attention, n), allowed);
  for (size_t i = 0; i < n; ++i) {
    if (gains[i] >= bar) wanted_.push_back({static_cast<float>(gains[i] / found), candidates_.clusters[i]});
  }
}

bool CentroidSearch::WantClusters() {
  const auto blocks = static_cast<double>(scanned_.size());
  const int64_t most = std::max(kFewestMostRows / kBlockRows,
                                static_cast<int64_t>(static_cast<double>(index_->shape().max_share) * blocks));
  int64_t wanted_blocks = scanned_blocks_;
  for (const Wanted& wanted : wanted_) wanted_blocks += index_->ClusterRows(wanted.cluster) / kBlockRows + 2;
  if (wanted_blocks > most) {
    std::sort(wanted_.begin(), wanted_.end(), [](const Wanted& a, const Wanted& b) {
      return a.gain > b.gain || (a.gain == b.gain && a.cluster < b.cluster);
    });
  }
  for (const Wanted& wanted : wanted_) {
    if (scanned_blocks_ + static_cast<int64_t>(want_.size()) >= most) break;
    WantCluster(wanted.cluster);
  }
  return !want_.empty();
}

absl::Status CentroidSearch::ScanWanted(CentroidCounts* counts) {
  scanned_blocks_ += static_cast<int64_t>(want_.size());
  std::sort(want_.begin(), want_.end());
  blocks_.clear();
  for (size_t begin = 0, end; begin < want_.size(); begin = end) {
    for (end = begin + 1; end < want_.size() && want_[end] == want_[end - 1] + 1;) ++end;
    AppendByChunk(want_[begin], want_[end - 1] + 1, blocks_);
  }
  counts->probed += query_->count * kBlockRows * static_cast<int64_t>(want_.size());
  want_.clear();
  const CentroidIndex::Parts& parts = index_->parts();
  const ReorderedRows rows = {.codes = parts.codes.get(),
                              .row_numbers = parts.row_numbers.data(),
                              .blocks = blocks_,
                              .row_begin = query_->row_begin,
                              .row_end = query_->row_end};
  scan_.Begin(query_->queries, query_->count, index_->dim(), nullptr, query_->top);
  scan_.AddReordered(*query_->keys, rows, query_->first_token, query_->rankings);
  const absl::StatusOr<ScanCounts> scan = scan_.End();
  if (!scan.ok()) return scan.status();
  counts->scan.by_code += scan->by_code;
  counts->scan.reranked += scan->reranked;
  counts->scan.rescanned += scan->rescanned;
  return absl::OkStatus();
}

}  // namespace mneme
