// SPDX-License-Identifier: Apache-2.0
#include "index/faiss/grouped_index.h"

#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "index/faiss/blob_header.h"
#include "index/faiss/faiss_call.h"
#include "index/faiss/faiss_index.h"

namespace mneme {
namespace {

// The blob, little endian, follows the header of blob_header.h:
//   rows i64  dim i64  groups i64  group number u32 [rows]  the blob of the index over the first row of each group
constexpr absl::string_view kMagic = "MNEMEKIG";
constexpr uint32_t kVersion = 1;
constexpr size_t kHeader = 40;

// Fewer keys than this get a flat index: a graph or lists would save nothing, and codes would have too few to train on.
constexpr int64_t kMinIndexedKeys = 256;

class GroupedIndex final : public KeyIndex {
 public:
  GroupedIndex(RowGroups groups, std::unique_ptr<KeyIndex> index)
      : groups_(std::move(groups)), index_(std::move(index)) {}

  int64_t rows() const override { return groups_.rows(); }
  int64_t dim() const override { return index_->dim(); }
  bool exact() const override { return index_->exact(); }
  std::string Where() const override { return index_->Where(); }
  const RowGroups* groups() const override { return &groups_; }

  absl::Status Search(const float* queries, int64_t count, int64_t fetch, int64_t* found) const override {
    return index_->Search(queries, count, fetch, found);
  }

  absl::StatusOr<std::string> Serialize() const override {
    MNEME_ASSIGN_OR_RETURN(const std::string inner, index_->Serialize());
    std::string blob;
    MNEME_RETURN_IF_ERROR(CallFaiss("grouped rows", [&] {
      const size_t number_bytes = groups_.numbers().size() * sizeof(int32_t);
      blob.resize(kHeader + number_bytes + inner.size());
      std::memcpy(blob.data(), kMagic.data(), kBlobMagicBytes);
      PutNumber(blob, kBlobVersionAt, kVersion);
      PutNumber(blob, 16, rows());
      PutNumber(blob, 24, dim());
      PutNumber(blob, 32, groups_.groups());
      std::memcpy(blob.data() + kHeader, groups_.numbers().data(), number_bytes);
      std::memcpy(blob.data() + kHeader + number_bytes, inner.data(), inner.size());
      PutNumber(blob, kBlobChecksumAt, BlobChecksum(blob));
    }));
    return blob;
  }

  size_t MemoryBytes() const override { return sizeof(*this) + groups_.MemoryBytes() + index_->MemoryBytes(); }

 private:
  const RowGroups groups_;
  const std::unique_ptr<KeyIndex> index_;  // over the first rows of the groups
};

// Returns: the spec of the index over the first row of each of `groups` groups, where `spec` is asked for over `rows`
// rows. Errors: those of `spec` over `rows` rows that all differ.
absl::StatusOr<IndexSpec> SpecOfGroups(const IndexSpec& spec, int64_t rows, int64_t groups, int64_t dim) {
  MNEME_RETURN_IF_ERROR(ResolveShape(spec, rows, dim).status());
  if (groups >= kMinIndexedKeys && ResolveShape(spec, groups, dim).ok()) return spec;
  IndexSpec flat;
  flat.kind = IsGpuKind(spec.kind) ? IndexKind::kGpuFlat : IndexKind::kFlat;
  flat.scratch_mib = spec.scratch_mib;
  return flat;
}

}  // namespace

absl::StatusOr<std::unique_ptr<KeyIndex>> BuildGroupedIndex(const IndexSpec& spec, const float* keys, int64_t dim,
                                                            RowGroups groups) {
  MNEME_ASSIGN_OR_RETURN(const IndexSpec inner, SpecOfGroups(spec, groups.rows(), groups.groups(), dim));
  std::vector<float> first;
  MNEME_RETURN_IF_ERROR(CallFaiss("grouped rows", [&] { first = groups.FirstKeys(keys, dim); }));
  MNEME_ASSIGN_OR_RETURN(std::unique_ptr<KeyIndex> index, BuildFaissIndex(inner, first.data(), groups.groups(), dim));
  return std::make_unique<GroupedIndex>(std::move(groups), std::move(index));
}

bool IsGroupedBlob(absl::string_view blob) {
  return blob.substr(0, kBlobMagicBytes) == kMagic;
}

absl::StatusOr<std::unique_ptr<KeyIndex>> LoadGroupedIndex(const IndexSpec& spec, absl::string_view blob, int64_t rows,
                                                           int64_t dim) {
  if (blob.size() < kHeader || GetNumber<uint32_t>(blob, kBlobChecksumAt) != BlobChecksum(blob)) {
    return absl::DataLossError(absl::StrCat("grouped rows: the index blob of ", blob.size(), " bytes is damaged"));
  }
  if (const auto version = GetNumber<uint32_t>(blob, kBlobVersionAt); version != kVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("grouped rows: the index blob has version ", version, ", this build reads ", kVersion));
  }
  const auto blob_rows = GetNumber<int64_t>(blob, 16);
  const auto blob_dim = GetNumber<int64_t>(blob, 24);
  if (blob_rows != rows || blob_dim != dim) {
    return absl::FailedPreconditionError(absl::StrCat("the index blob is of ", blob_rows, " rows, dim ", blob_dim,
                                                      "; expected ", rows, " rows, dim ", dim));
  }
  const auto group_count = GetNumber<int64_t>(blob, 32);
  const size_t number_bytes = static_cast<size_t>(rows) * sizeof(int32_t);
  if (group_count < 1 || group_count >= rows || blob.size() - kHeader < number_bytes) {
    return absl::DataLossError("grouped rows: the header makes no sense");
  }
  std::optional<absl::StatusOr<RowGroups>> groups;
  MNEME_RETURN_IF_ERROR(CallFaiss("grouped rows", [&] {
    std::vector<int32_t> numbers(static_cast<size_t>(rows));
    std::memcpy(numbers.data(), blob.data() + kHeader, number_bytes);
    groups = RowGroups::FromNumbers(std::move(numbers), group_count);
  }));
  MNEME_RETURN_IF_ERROR(groups->status());
  MNEME_ASSIGN_OR_RETURN(const IndexSpec inner, SpecOfGroups(spec, rows, group_count, dim));
  MNEME_ASSIGN_OR_RETURN(std::unique_ptr<KeyIndex> index,
                         LoadFaissIndex(inner, blob.substr(kHeader + number_bytes), group_count, dim));
  return std::make_unique<GroupedIndex>(**std::move(groups), std::move(index));
}

}  // namespace mneme
