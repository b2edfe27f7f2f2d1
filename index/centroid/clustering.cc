// SPDX-License-Identifier: Apache-2.0
#include "index/centroid/clustering.h"

#include <faiss/Clustering.h>
#include <faiss/IndexFlat.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/status.h"
#include "index/faiss/faiss_call.h"

namespace mneme {
namespace {

// Level 1 has about the square root of the number of clusters: then both levels compare a row with equally many.
constexpr int kFirstIterations = 10;
constexpr int kSecondIterations = 8;
constexpr int kFirstRowsPerCentroid = 128;  // level 1 is trained on a sample
constexpr int kSeed = 1234;

// Returns: the keys less their mean. They are scaled by a power of two if they are so large or small that squared
// distances would overflow or vanish.
std::vector<float> CenterKeys(const float* keys, int64_t rows, int64_t dim) {
  constexpr int kMostExponent = 30;
  const auto count = static_cast<size_t>(rows * dim);
  float largest = 0;
  for (size_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(keys[i]));
  const int exponent = largest > 0 ? std::ilogb(largest) : 0;
  const int shift = std::abs(exponent) > kMostExponent ? -exponent : 0;
  std::vector<double> mean(static_cast<size_t>(dim), 0.0);
  std::vector<float> centered(count);
  for (size_t i = 0; i < count; ++i) {
    centered[i] = shift != 0 ? std::ldexp(keys[i], shift) : keys[i];
    mean[i % static_cast<size_t>(dim)] += centered[i];
  }
  for (double& x : mean) x /= static_cast<double>(rows);
  for (size_t i = 0; i < count; ++i) centered[i] -= static_cast<float>(mean[i % static_cast<size_t>(dim)]);
  return centered;
}

// k-means of `keys`, f32 [rows, dim]. of_row: [rows], gets the number of each row's centroid, below `centroids`.
// Throws what FAISS throws. Requires: 1 <= centroids <= rows.
void RunKMeans(const float* keys, int64_t rows, int64_t dim, int64_t centroids, int iterations, int rows_per_centroid,
               int64_t* of_row) {
  if (centroids == 1) {
    std::fill_n(of_row, rows, 0);
    return;
  }
  faiss::ClusteringParameters parameters;
  parameters.niter = iterations;
  parameters.seed = kSeed;
  parameters.min_points_per_centroid = 1;  // no warning on stderr
  parameters.max_points_per_centroid = rows_per_centroid;
  faiss::Clustering clustering(static_cast<int>(dim), static_cast<int>(centroids), parameters);
  faiss::IndexFlatL2 assigner(dim);
  clustering.train(rows, keys, assigner);
  std::vector<float> distances(static_cast<size_t>(rows));
  assigner.search(rows, keys, 1, distances.data(), of_row);
  // FAISS gives -1 where no distance is below its greatest number.
  for (int64_t r = 0; r < rows; ++r) of_row[r] = std::clamp<int64_t>(of_row[r], 0, centroids - 1);
}

// Renumbers clusters in their order, so that none is empty.
void DropEmpty(Clustering& clustering) {
  std::vector<int32_t> number(static_cast<size_t>(clustering.count), 0);
  for (const int32_t cluster : clustering.of_row) number[static_cast<size_t>(cluster)] = 1;
  int32_t next = 0;
  for (int32_t& n : number) n = n != 0 ? next++ : -1;
  for (int32_t& cluster : clustering.of_row) cluster = number[static_cast<size_t>(cluster)];
  clustering.count = next;
}

Clustering Cluster(const std::vector<float>& keys, int64_t rows, int64_t dim, int64_t cluster_rows) {
  const int64_t wanted = std::max<int64_t>(1, rows / cluster_rows);
  const auto first_level = std::max<int64_t>(1, std::llround(std::sqrt(static_cast<double>(wanted))));
  std::vector<int64_t> first(static_cast<size_t>(rows));
  RunKMeans(keys.data(), rows, dim, first_level, kFirstIterations, kFirstRowsPerCentroid, first.data());
  std::vector<int64_t> order(static_cast<size_t>(rows));
  std::iota(order.begin(), order.end(), 0);
  const auto of = [&](int64_t row) { return first[static_cast<size_t>(row)]; };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return of(a) < of(b); });

  Clustering result{.count = 0, .of_row = std::vector<int32_t>(static_cast<size_t>(rows))};
  std::vector<float> group;
  std::vector<int64_t> second;
  for (size_t begin = 0, end; begin < order.size(); begin = end) {
    for (end = begin; end < order.size() && of(order[end]) == of(order[begin]);) ++end;
    const auto size = static_cast<int64_t>(end - begin);
    group.clear();
    for (size_t i = begin; i < end; ++i) {
      group.insert(group.end(), keys.data() + order[i] * dim, keys.data() + (order[i] + 1) * dim);
    }
    second.resize(end - begin);
    const int64_t clusters = std::max<int64_t>(1, (size + cluster_rows / 2) / cluster_rows);
    RunKMeans(group.data(), size, dim, clusters, kSecondIterations, static_cast<int>(2 * cluster_rows), second.data());
    for (size_t i = begin; i < end; ++i) {
      result.of_row[static_cast<size_t>(order[i])] = result.count + static_cast<int32_t>(second[i - begin]);
    }
    result.count += static_cast<int32_t>(clusters);
  }
  DropEmpty(result);
  return result;
}

}  // namespace

absl::StatusOr<Clustering> ClusterKeys(const float* keys, int64_t rows, int64_t dim, int64_t cluster_rows) {
  Clustering result;
  MNEME_RETURN_IF_ERROR(CallFaiss("centroid", [&] {
    const std::vector<float> centered = CenterKeys(keys, rows, dim);
    result = Cluster(centered, rows, dim, cluster_rows);
  }));
  return result;
}

}  // namespace mneme
