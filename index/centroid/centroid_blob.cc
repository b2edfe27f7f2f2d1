// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "index/centroid/centroid_index.h"
#include "index/faiss/blob_header.h"
#include "index/faiss/faiss_call.h"

namespace mneme {
namespace {

// The blob, little endian, follows the header of blob_header.h:
//   rows i64  dim i64  outliers i64  clusters i64  cluster_rows i32  outlier share f32
//   row_numbers i32 [places]  begins i32 [clusters + 1]  radii f32 [clusters]
//   means and blocks of the rows' codes, means and blocks of the centroids' codes (KeyCodes)
constexpr absl::string_view kMagic = "MNEMEKIC";
constexpr uint32_t kVersion = 1;
constexpr size_t kHeader = 56;

size_t CodeBytes(const KeyCodes& codes, int64_t rows) {
  return static_cast<size_t>(KeyCodes::MeansOf(rows)) * codes.mean_bytes() +
         static_cast<size_t>(KeyCodes::BlocksOf(rows)) * codes.block_bytes();
}

// Bytes behind the header. Requires: the sizes of `parts` are set, and clusters <= rows.
size_t BodyBytes(const CentroidIndex::Parts& parts, int64_t clusters, int64_t first_sample) {
  const KeyCodes empty(parts.dim);
  return static_cast<size_t>(parts.places() + 2 * clusters + 1) * sizeof(int32_t) + CodeBytes(empty, parts.places()) +
         CodeBytes(empty, first_sample + CentroidIndex::kSpreadSamples);
}

void AppendCodes(const KeyCodes& codes, std::string& blob) {
  int64_t contiguous = 0;
  for (int64_t mean = 0; mean < KeyCodes::MeansOf(codes.rows()); mean += contiguous) {
    const char* const from = codes.Means(mean * KeyCodes::kChunkRows, &contiguous);
    contiguous = std::min(contiguous, KeyCodes::MeansOf(codes.rows()) - mean);
    blob.append(from, static_cast<size_t>(contiguous) * codes.mean_bytes());
  }
  for (int64_t block = 0; block < KeyCodes::BlocksOf(codes.rows()); block += contiguous) {
    const char* const from = codes.Blocks(block * KeyCodes::kBlockRows, &contiguous);
    contiguous = std::min(contiguous, KeyCodes::BlocksOf(codes.rows()) - block);
    blob.append(from, static_cast<size_t>(contiguous) * codes.block_bytes());
  }
}

template <typename Number>
void AppendNumbers(const std::vector<Number>& numbers, std::string& blob) {
  blob.append(reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(Number));
}

// Reads the body of a blob whose size was checked.
class BodyReader {
 public:
  explicit BodyReader(absl::string_view body) : rest_(body) {}

  template <typename Number>
  void Numbers(int64_t count, std::vector<Number>& numbers) {
    numbers.resize(static_cast<size_t>(count));
    Take(absl::MakeSpan(reinterpret_cast<char*>(numbers.data()), numbers.size() * sizeof(Number)));
  }

  absl::Status Codes(int64_t rows, KeyCodes& codes) {
    return codes.Restore(rows, [&](absl::Span<char> means, absl::Span<char> blocks) {
      Take(means);
      Take(blocks);
      return absl::OkStatus();
    });
  }

 private:
  void Take(absl::Span<char> to) {
    std::memcpy(to.data(), rest_.data(), to.size());
    rest_.remove_prefix(to.size());
  }

  absl::string_view rest_;
};

// Whether the parts are what a build can make: every row at one place, clusters one after the other.
bool MakesSense(const CentroidIndex::Parts& parts) {
  std::vector<bool> seen(static_cast<size_t>(parts.rows));
  for (size_t place = 0; place < parts.row_numbers.size(); ++place) {
    const int32_t row = parts.row_numbers[place];
    if (static_cast<int64_t>(place) >= parts.rows) {
      if (row != -1) return false;
      continue;
    }
    if (row < 0 || row >= parts.rows || seen[static_cast<size_t>(row)]) return false;
    seen[static_cast<size_t>(row)] = true;
  }
  if (parts.begins.front() != parts.outliers || parts.begins.back() != parts.rows) return false;
  for (size_t c = 0; c < parts.radii.size(); ++c) {
    if (parts.begins[c] >= parts.begins[c + 1] || !std::isfinite(parts.radii[c]) || parts.radii[c] < 0) return false;
  }
  return true;
}

}  // namespace

absl::StatusOr<std::string> CentroidIndex::Serialize() const {
  std::string blob;
  MNEME_RETURN_IF_ERROR(CallFaiss("centroid", [&] {
    blob.reserve(kHeader + BodyBytes(parts_, clusters(), parts_.first_sample()));
    blob.resize(kHeader);
    std::memcpy(blob.data(), kMagic.data(), kBlobMagicBytes);
    PutNumber(blob, kBlobVersionAt, kVersion);
    PutNumber(blob, 16, parts_.rows);
    PutNumber(blob, 24, parts_.dim);
    PutNumber(blob, 32, parts_.outliers);
    PutNumber(blob, 40, clusters());
    PutNumber(blob, 48, shape_.cluster_rows);
    PutNumber(blob, 52, shape_.outliers);
    AppendNumbers(parts_.row_numbers, blob);
    AppendNumbers(parts_.begins, blob);
    AppendNumbers(parts_.radii, blob);
    AppendCodes(*parts_.codes, blob);
    AppendCodes(*parts_.centroids, blob);
    PutNumber(blob, kBlobChecksumAt, BlobChecksum(blob));
  }));
  return blob;
}

absl::StatusOr<std::unique_ptr<KeyIndex>> LoadCentroidIndex(const IndexSpec& spec, absl::string_view blob, int64_t rows,
                                                            int64_t dim) {
  const CentroidShape shape = ResolveCentroidShape(spec);
  if (blob.size() < kHeader || GetNumber<uint32_t>(blob, kBlobChecksumAt) != BlobChecksum(blob)) {
    return absl::DataLossError(absl::StrCat("centroid: the index blob of ", blob.size(), " bytes is damaged"));
  }
  if (blob.substr(0, kBlobMagicBytes) != kMagic) {
    return absl::FailedPreconditionError("centroid: the index blob is of another kind");
  }
  if (const auto version = GetNumber<uint32_t>(blob, kBlobVersionAt); version != kVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("centroid: the index blob has version ", version, ", this build reads ", kVersion));
  }
  CentroidIndex::Parts parts;
  parts.rows = GetNumber<int64_t>(blob, 16);
  parts.dim = GetNumber<int64_t>(blob, 24);
  parts.outliers = GetNumber<int64_t>(blob, 32);
  const auto clusters = GetNumber<int64_t>(blob, 40);
  const auto cluster_rows = GetNumber<int32_t>(blob, 48);
  const auto outlier_share = GetNumber<float>(blob, 52);
  if (parts.rows != rows || parts.dim != dim || cluster_rows != shape.cluster_rows || outlier_share != shape.outliers) {
    return absl::FailedPreconditionError(absl::StrCat("the index blob is of ", parts.rows, " rows, dim ", parts.dim,
                                                      ", cluster_rows ", cluster_rows, ", outliers ", outlier_share,
                                                      "; expected ", rows, " rows, dim ", dim, ", cluster_rows ",
                                                      shape.cluster_rows, ", outliers ", shape.outliers));
  }
  const absl::Status nonsense = absl::DataLossError("centroid: the index blob is damaged: its numbers make no sense");
  // Only then do the sizes fit 64 bits, and the vectors below are no larger than the blob.
  if (parts.outliers < 0 || parts.outliers >= rows || clusters < 1 || clusters > rows) return nonsense;
  const int64_t first_sample = (clusters + KeyCodes::kChunkRows - 1) / KeyCodes::kChunkRows * KeyCodes::kChunkRows;
  if (blob.size() - kHeader != BodyBytes(parts, clusters, first_sample)) return nonsense;
  std::unique_ptr<KeyIndex> index;
  bool makes_sense = false;
  MNEME_RETURN_IF_ERROR(CallFaiss("centroid", [&] {
    BodyReader reader(blob.substr(kHeader));
    reader.Numbers(parts.places(), parts.row_numbers);
    reader.Numbers(clusters + 1, parts.begins);
    reader.Numbers(clusters, parts.radii);
    parts.codes = std::make_unique<KeyCodes>(dim);
    parts.centroids = std::make_unique<KeyCodes>(dim);
    makes_sense = MakesSense(parts) && reader.Codes(parts.places(), *parts.codes).ok() &&
                  reader.Codes(first_sample + CentroidIndex::kSpreadSamples, *parts.centroids).ok();
    if (makes_sense) index = std::make_unique<CentroidIndex>(shape, std::move(parts));
  }));
  if (!makes_sense) return nonsense;
  return index;
}

}  // namespace mneme
