// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "base/status.h"
#include "index/centroid/centroid_index.h"
#include "index/centroid/clustering.h"
#include "index/faiss/faiss_call.h"
#include "index/key_rows.h"

namespace mneme {
namespace {

class Builder {
 public:
  // keys: f32 [rows, dim].
  Builder(const float* keys, int64_t rows, int64_t dim, Clustering clustering)
      : keys_(keys), rows_(rows), dim_(dim), clustering_(std::move(clustering)) {}

  CentroidIndex::Parts Build(double outlier_share) {
    CentroidIndex::Parts parts;
    parts.rows = rows_;
    parts.dim = dim_;
    // At least one row stays, so that there is a cluster.
    parts.outliers = std::min(static_cast<int64_t>(outlier_share * static_cast<double>(rows_)), rows_ - 1);
    is_outlier_.assign(static_cast<size_t>(rows_), false);
    ComputeCentroids();
    ChooseOutliers(parts.outliers);
    ComputeCentroids();
    OrderRows(parts);
    ComputeRadii(parts);
    EncodeRows(parts);
    EncodeCentroids(parts);
    return parts;
  }

 private:
  const float* Key(int64_t row) const { return keys_ + row * dim_; }
  int32_t ClusterOf(int64_t row) const { return clustering_.of_row[static_cast<size_t>(row)]; }
  const double* Centroid(int64_t cluster) const { return centroids_.data() + cluster * dim_; }

  // The mean of each cluster's rows that are no outliers; sizes_ says how many they are.
  void ComputeCentroids() {
    centroids_.assign(static_cast<size_t>(clustering_.count * dim_), 0.0);
    sizes_.assign(static_cast<size_t>(clustering_.count), 0);
    for (int64_t row = 0; row < rows_; ++row) {
      if (is_outlier_[static_cast<size_t>(row)]) continue;
      double* const sum = centroids_.data() + ClusterOf(row) * dim_;
      for (int64_t d = 0; d < dim_; ++d) sum[d] += Key(row)[d];
      ++sizes_[static_cast<size_t>(ClusterOf(row))];
    }
    for (int64_t c = 0; c < clustering_.count; ++c) {
      const auto size = static_cast<double>(std::max<int64_t>(1, sizes_[static_cast<size_t>(c)]));
      for (int64_t d = 0; d < dim_; ++d) centroids_[static_cast<size_t>(c * dim_ + d)] /= size;
    }
  }

  double SquaredResidual(int64_t row) const {
    const double* const centroid = Centroid(ClusterOf(row));
    double sum = 0;
    for (int64_t d = 0; d < dim_; ++d) {
      const double difference = Key(row)[d] - centroid[d];
      sum += difference * difference;
    }
    return sum;
  }

  void ChooseOutliers(int64_t count) {
    std::vector<double> residuals(static_cast<size_t>(rows_));
    for (int64_t row = 0; row < rows_; ++row) residuals[static_cast<size_t>(row)] = SquaredResidual(row);
    std::vector<int64_t> order(static_cast<size_t>(rows_));
    std::iota(order.begin(), order.end(), 0);
    std::nth_element(order.begin(), order.begin() + count, order.end(), [&](int64_t a, int64_t b) {
      const double x = residuals[static_cast<size_t>(a)], y = residuals[static_cast<size_t>(b)];
      return x > y || (x == y && a < b);
    });
    for (int64_t i = 0; i < count; ++i) is_outlier_[static_cast<size_t>(order[static_cast<size_t>(i)])] = true;
  }

  // Places: outliers, then the clusters that have rows left. Within each, rows ascend.
  void OrderRows(CentroidIndex::Parts& parts) {
    parts.row_numbers.assign(static_cast<size_t>(parts.places()), -1);
    auto next = static_cast<int32_t>(parts.outliers);
    std::vector<int32_t> place_of(static_cast<size_t>(clustering_.count));
    for (size_t c = 0; c < place_of.size(); ++c) {
      place_of[c] = next;
      if (sizes_[c] == 0) continue;
      parts.begins.push_back(next);
      kept_.push_back(static_cast<int64_t>(c));
      next += static_cast<int32_t>(sizes_[c]);
    }
    parts.begins.push_back(next);
    int32_t outlier = 0;
    for (int64_t row = 0; row < rows_; ++row) {
      int32_t& place = is_outlier_[static_cast<size_t>(row)] ? outlier : place_of[static_cast<size_t>(ClusterOf(row))];
      parts.row_numbers[static_cast<size_t>(place++)] = static_cast<int32_t>(row);
    }
  }

  void ComputeRadii(CentroidIndex::Parts& parts) {
    for (size_t c = 0; c < kept_.size(); ++c) {
      double sum = 0;
      for (int32_t place = parts.begins[c]; place < parts.begins[c + 1]; ++place) {
        sum += SquaredResidual(parts.row_numbers[static_cast<size_t>(place)]);
      }
      const double radius = std::sqrt(sum / (parts.begins[c + 1] - parts.begins[c]));
      parts.radii.push_back(
          static_cast<float>(std::min(radius, static_cast<double>(std::numeric_limits<float>::max()))));
    }
  }

  void EncodeRows(CentroidIndex::Parts& parts) {
    KeyRows ordered(DType::kF32, dim_);
    ordered.Reserve(parts.places());
    int32_t row = 0;
    for (const int32_t number : parts.row_numbers) {
      if (number >= 0) row = number;  // the places behind the last row repeat it
      ordered.Append(Key(row), 1);
    }
    parts.codes = std::make_unique<KeyCodes>(dim_);
    parts.codes->EncodeAll(ordered);
  }

  void EncodeCentroids(CentroidIndex::Parts& parts) {
    KeyRows vectors(DType::kF32, dim_);
    vectors.Reserve(parts.first_sample() + CentroidIndex::kSpreadSamples);
    std::vector<float> vector(static_cast<size_t>(dim_));
    for (int64_t i = 0; i < parts.first_sample(); ++i) {
      const double* const centroid = Centroid(kept_[static_cast<size_t>(std::min(i, parts.clusters() - 1))]);
      for (size_t d = 0; d < vector.size(); ++d) vector[d] = static_cast<float>(centroid[d]);
      vectors.Append(vector.data(), 1);
    }
    const int64_t clustered = rows_ - parts.outliers;
    for (int64_t i = 0; i < CentroidIndex::kSpreadSamples; ++i) {
      const int64_t place = parts.outliers + i * clustered / CentroidIndex::kSpreadSamples;
      const auto cluster = std::upper_bound(parts.begins.begin(), parts.begins.end(), place) - parts.begins.begin() - 1;
      const double radius = parts.radii[static_cast<size_t>(cluster)];
      const double* const centroid = Centroid(kept_[static_cast<size_t>(cluster)]);
      const float* const key = Key(parts.row_numbers[static_cast<size_t>(place)]);
      for (int64_t d = 0; d < dim_; ++d) {
        vector[static_cast<size_t>(d)] = radius > 0 ? static_cast<float>((key[d] - centroid[d]) / radius) : 0.0f;
      }
      vectors.Append(vector.data(), 1);
    }
    parts.centroids = std::make_unique<KeyCodes>(dim_);
    parts.centroids->EncodeAll(vectors);
  }

  const float* const keys_;
  const int64_t rows_;
  const int64_t dim_;
  const Clustering clustering_;
  std::vector<bool> is_outlier_;   // [rows]
  std::vector<double> centroids_;  // [clusters][dim]
  std::vector<int64_t> sizes_;     // [clusters]
  std::vector<int64_t> kept_;      // the clusters of which outliers left something
};

}  // namespace

absl::StatusOr<std::unique_ptr<KeyIndex>> BuildCentroidIndex(const IndexSpec& spec, const float* keys, int64_t rows,
                                                             int64_t dim) {
  const CentroidShape shape = ResolveCentroidShape(spec);
  MNEME_ASSIGN_OR_RETURN(Clustering clustering, ClusterKeys(keys, rows, dim, shape.cluster_rows));
  std::unique_ptr<KeyIndex> index;
  MNEME_RETURN_IF_ERROR(CallFaiss(FormatIndexSpec(spec), [&] {
    Builder builder(keys, rows, dim, std::move(clustering));
    index = std::make_unique<CentroidIndex>(shape, builder.Build(shape.outliers));
  }));
  return index;
}

}  // namespace mneme
