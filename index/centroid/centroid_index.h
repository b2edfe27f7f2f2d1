// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_CENTROID_CENTROID_INDEX_H_
#define MNEME_INDEX_CENTROID_CENTROID_INDEX_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

#include "index/key_index.h"
#include "index/scan/key_codes.h"

namespace mneme {

// The numbers of an IndexSpec of kind centroid, with defaults filled in.
struct CentroidShape {
  // What decides the blob.
  int32_t cluster_rows = 32;
  float outliers = 0.005f;
  // What only a search uses.
  float max_miss = 0.02f;
  float max_share = 0.25f;
};
CentroidShape ResolveCentroidShape(const IndexSpec& spec);

// Keys in clusters (docs/design/centroid.md). The codes of the rows lie in cluster order: outliers first, which every
// query scans, then one cluster after the other. A place is a row's number in that order. Immutable and thread-safe.
class CentroidIndex final : public KeyIndex {
 public:
  // Rows whose residuals tell how far a query's dot product with a row spreads around that with its centroid.
  static constexpr int64_t kSpreadSamples = KeyCodes::kChunkRows;

  // What Build computes and a blob holds.
  struct Parts {
    int64_t rows = 0;
    int64_t dim = 0;
    int64_t outliers = 0;
    std::vector<int32_t> row_numbers;  // [places]: the row at each place; -1 behind the last. places: whole blocks
    std::vector<int32_t> begins;       // [clusters + 1]: the first place of each cluster
    std::vector<float> radii;          // [clusters]: root of the mean square of the residuals' norms
    std::unique_ptr<KeyCodes> codes;   // of the rows, by place
    // Codes of the centroids, the last one repeated up to a whole chunk; then of kSpreadSamples residuals, each divided
    // by its cluster's radius.
    std::unique_ptr<KeyCodes> centroids;

    int64_t clusters() const { return static_cast<int64_t>(radii.size()); }
    int64_t places() const { return (rows + KeyCodes::kBlockRows - 1) / KeyCodes::kBlockRows * KeyCodes::kBlockRows; }
    int64_t first_sample() const {
      return (clusters() + KeyCodes::kChunkRows - 1) / KeyCodes::kChunkRows * KeyCodes::kChunkRows;
    }
  };

  CentroidIndex(const CentroidShape& shape, Parts parts);

  int64_t rows() const override { return parts_.rows; }
  int64_t dim() const override { return parts_.dim; }
  // Search ranks by codes.
  bool exact() const override { return false; }
  const CentroidIndex* AsCentroid() const override { return this; }
  // Ranks rows of the most promising clusters by their codes alone, max_share of all rows or more.
  absl::Status Search(const float* queries, int64_t count, int64_t fetch, int64_t* found) const override;
  absl::StatusOr<std::string> Serialize() const override;
  size_t MemoryBytes() const override;

  const CentroidShape& shape() const { return shape_; }
  const Parts& parts() const { return parts_; }
  int64_t clusters() const { return parts_.clusters(); }
  int64_t ClusterRows(int64_t cluster) const {
    const auto c = static_cast<size_t>(cluster);
    return parts_.begins[c + 1] - parts_.begins[c];
  }
  // The greatest row number in each cluster.
  absl::Span<const int32_t> youngest_rows() const { return youngest_rows_; }

 private:
  const CentroidShape shape_;
  const Parts parts_;
  std::vector<int32_t> youngest_rows_;
};

// As BuildKeyIndex and LoadKeyIndex.
absl::StatusOr<std::unique_ptr<KeyIndex>> BuildCentroidIndex(const IndexSpec& spec, const float* keys, int64_t rows,
                                                             int64_t dim);
absl::StatusOr<std::unique_ptr<KeyIndex>> LoadCentroidIndex(const IndexSpec& spec, absl::string_view blob, int64_t rows,
                                                            int64_t dim);

}  // namespace mneme

#endif  // MNEME_INDEX_CENTROID_CENTROID_INDEX_H_
