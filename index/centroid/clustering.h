// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_CENTROID_CLUSTERING_H_
#define MNEME_INDEX_CENTROID_CLUSTERING_H_

// Internal to index/: divides keys into clusters.

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

namespace mneme {

struct Clustering {
  int32_t count = 0;
  std::vector<int32_t> of_row;  // [rows]: below count; no cluster is empty
};

// Divides keys, f32 [rows, dim], into about rows / cluster_rows clusters, by FAISS's k-means on keys less their mean,
// in two levels: clusters with near numbers are alike. Deterministic, on the calling thread alone.
// Requires: rows >= 1; the keys are finite. Errors: ResourceExhausted, Internal.
absl::StatusOr<Clustering> ClusterKeys(const float* keys, int64_t rows, int64_t dim, int64_t cluster_rows);

}  // namespace mneme

#endif  // MNEME_INDEX_CENTROID_CLUSTERING_H_
