// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_FAISS_ROW_GROUPS_H_
#define MNEME_INDEX_FAISS_ROW_GROUPS_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace mneme {

// Rows grouped by equal keys. Groups are numbered from 0 in the order of their first rows; if all keys differ, group
// numbers are row numbers. Immutable and thread-safe.
class RowGroups {
 public:
  // Groups keys, f32 [rows, dim]. 0 equals -0, since both give the same dot products. Requires: the keys are finite.
  static RowGroups OfKeys(const float* keys, int64_t rows, int64_t dim);

  // Makes the groups from numbers(). Errors: DataLoss if OfKeys gives no such numbers.
  static absl::StatusOr<RowGroups> FromNumbers(std::vector<int32_t> numbers, int64_t groups);

  int64_t rows() const { return static_cast<int64_t>(numbers_.size()); }
  int64_t groups() const { return static_cast<int64_t>(starts_.size()) - 1; }

  // The rows of one group, ascending. Requires: 0 <= group < groups().
  absl::Span<const int32_t> Rows(int64_t group) const {
    const auto g = static_cast<size_t>(group);
    return absl::MakeConstSpan(rows_).subspan(static_cast<size_t>(starts_[g]),
                                              static_cast<size_t>(starts_[g + 1] - starts_[g]));
  }

  // The group number of each row.
  absl::Span<const int32_t> numbers() const { return numbers_; }

  // Returns: the key of the first row of each group, f32 [groups, dim]. keys: f32 [rows, dim].
  std::vector<float> FirstKeys(const float* keys, int64_t dim) const;

  size_t MemoryBytes() const { return (numbers_.size() + starts_.size() + rows_.size()) * sizeof(int32_t); }

 private:
  RowGroups(std::vector<int32_t> numbers, int64_t groups);

  std::vector<int32_t> numbers_;  // [rows]
  std::vector<int32_t> starts_;   // [groups + 1]: where each group begins in rows_
  std::vector<int32_t> rows_;     // [rows], group after group
};

}  // namespace mneme

#endif  // MNEME_INDEX_FAISS_ROW_GROUPS_H_
