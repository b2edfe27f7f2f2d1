// SPDX-License-Identifier: Apache-2.0
#include "index/key_index.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/dtype.h"
#include "base/status.h"
#include "index/centroid/centroid_index.h"
#include "index/faiss/faiss_call.h"
#include "index/faiss/faiss_index.h"
#include "index/faiss/grouped_index.h"
#include "index/faiss/row_groups.h"

namespace mneme {
namespace {

absl::Status CheckArguments(const IndexSpec& spec, int64_t rows, int64_t dim) {
  MNEME_RETURN_IF_ERROR(CheckGpuBuiltIn(spec.kind));
  switch (spec.kind) {
    case IndexKind::kAuto:
    case IndexKind::kScan:
      return absl::InvalidArgumentError(absl::StrCat(FormatIndexSpec(spec), ": has no structure to build or load"));
    case IndexKind::kFlat:
    case IndexKind::kIvf:
    case IndexKind::kIvfPq:
    case IndexKind::kHnsw:
    case IndexKind::kFactory:
    case IndexKind::kCentroid:
    case IndexKind::kGpuFlat:
    case IndexKind::kGpuIvf:
    case IndexKind::kGpuIvfPq:
    case IndexKind::kGpuCagra: break;
    default: return absl::InvalidArgumentError(absl::StrCat("index kind ", static_cast<int>(spec.kind), ": unknown"));
  }
  // FAISS numbers the nodes of a graph with 32 bits.
  if (rows < 1 || rows > INT32_MAX) {
    return absl::InvalidArgumentError(absl::StrCat("rows must be from 1 to ", INT32_MAX, ", not ", rows));
  }
  if (dim < 1 || dim > (1 << 16)) {
    return absl::InvalidArgumentError(absl::StrCat("dim must be from 1 to ", 1 << 16, ", not ", dim));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<KeyIndex>> BuildKeyIndex(const IndexSpec& spec, const float* keys, int64_t rows,
                                                        int64_t dim) {
  MNEME_RETURN_IF_ERROR(CheckArguments(spec, rows, dim));
  if (!AllFinite(DType::kF32, keys, static_cast<size_t>(rows * dim))) {
    return absl::InvalidArgumentError("keys must be finite");
  }
  // Rows with equal keys are of one cluster and lie side by side.
  if (spec.kind == IndexKind::kCentroid) return BuildCentroidIndex(spec, keys, rows, dim);
  std::optional<RowGroups> groups;
  MNEME_RETURN_IF_ERROR(CallFaiss(FormatIndexSpec(spec), [&] { groups = RowGroups::OfKeys(keys, rows, dim); }));
  if (groups->groups() == rows) return BuildFaissIndex(spec, keys, rows, dim);
  return BuildGroupedIndex(spec, keys, dim, *std::move(groups));
}

absl::StatusOr<std::unique_ptr<KeyIndex>> LoadKeyIndex(const IndexSpec& spec, absl::string_view blob, int64_t rows,
                                                       int64_t dim) {
  MNEME_RETURN_IF_ERROR(CheckArguments(spec, rows, dim));
  if (spec.kind == IndexKind::kCentroid) return LoadCentroidIndex(spec, blob, rows, dim);
  if (IsGroupedBlob(blob)) return LoadGroupedIndex(spec, blob, rows, dim);
  return LoadFaissIndex(spec, blob, rows, dim);
}

}  // namespace mneme
