// SPDX-License-Identifier: Apache-2.0
#include "index/faiss/faiss_blob.h"

#include <faiss/impl/io.h>
#include <faiss/index_io.h>

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "index/faiss/blob_header.h"
#include "index/faiss/faiss_call.h"

namespace mneme {
namespace {

// The blob, little endian, follows the header of blob_header.h:
//   rows i64  dim i64  text bytes u32  zero u32  FAISS bytes u64  text  mean f32 [dim]  FAISS's own bytes
constexpr char kMagic[kBlobMagicBytes] = {'M', 'N', 'E', 'M', 'E', 'K', 'I', 'X'};
constexpr uint32_t kVersion = 1;
constexpr size_t kHeader = 48;

}  // namespace

absl::StatusOr<std::string> WriteFaissBlob(const FaissShape& shape, const KeyCenter& center,
                                           const faiss::Index& index) {
  std::string blob;
  MNEME_RETURN_IF_ERROR(CallFaiss(shape.Text(), [&] {
    faiss::VectorIOWriter writer;
    faiss::write_index(&index, &writer);
    const std::string text = shape.Text();
    const size_t mean_bytes = center.mean.size() * sizeof(float);
    const size_t payload_at = kHeader + text.size() + mean_bytes;
    blob.resize(payload_at + writer.data.size());
    std::memcpy(blob.data(), kMagic, sizeof(kMagic));
    PutNumber(blob, kBlobVersionAt, kVersion);
    PutNumber(blob, 16, static_cast<int64_t>(index.ntotal));
    PutNumber(blob, 24, center.dim());
    PutNumber(blob, 32, static_cast<uint32_t>(text.size()));
    PutNumber(blob, 40, static_cast<uint64_t>(writer.data.size()));
    std::memcpy(blob.data() + kHeader, text.data(), text.size());
    std::memcpy(blob.data() + kHeader + text.size(), center.mean.data(), mean_bytes);
    std::memcpy(blob.data() + payload_at, writer.data.data(), writer.data.size());
    PutNumber(blob, kBlobChecksumAt, BlobChecksum(blob));
  }));
  return blob;
}

absl::StatusOr<FaissBlob> ReadFaissBlob(const FaissShape& shape, absl::string_view blob, int64_t rows, int64_t dim) {
  const std::string text = shape.Text();
  if (blob.size() < kHeader || std::memcmp(blob.data(), kMagic, sizeof(kMagic)) != 0 ||
      GetNumber<uint32_t>(blob, kBlobChecksumAt) != BlobChecksum(blob)) {
    return absl::DataLossError(absl::StrCat(text, ": the index blob of ", blob.size(), " bytes is damaged"));
  }
  if (const auto version = GetNumber<uint32_t>(blob, kBlobVersionAt); version != kVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat(text, ": the index blob has version ", version, ", this build reads ", kVersion));
  }
  const auto blob_rows = GetNumber<int64_t>(blob, 16);
  const auto blob_dim = GetNumber<int64_t>(blob, 24);
  const auto text_bytes = GetNumber<uint32_t>(blob, 32);
  if (text_bytes > blob.size() - kHeader) return absl::DataLossError(absl::StrCat(text, ": the header makes no sense"));
  const absl::string_view blob_text = blob.substr(kHeader, text_bytes);
  if (blob_text != text || blob_rows != rows || blob_dim != dim) {
    return absl::FailedPreconditionError(absl::StrCat("the index blob is \"", blob_text, "\" of ", blob_rows,
                                                      " rows, dim ", blob_dim, "; expected \"", text, "\" of ", rows,
                                                      " rows, dim ", dim));
  }
  const size_t mean_at = kHeader + text_bytes;
  const size_t mean_bytes = static_cast<size_t>(dim) * sizeof(float);
  const size_t payload_at = mean_at + mean_bytes;
  if (blob.size() < payload_at || blob.size() - payload_at != GetNumber<uint64_t>(blob, 40)) {
    return absl::DataLossError(absl::StrCat(text, ": the header makes no sense"));
  }

  FaissBlob read;
  bool as_expected = false;
  MNEME_RETURN_IF_ERROR(CallFaiss(text, [&] {
    read.center.mean.resize(static_cast<size_t>(dim));
    std::memcpy(read.center.mean.data(), blob.data() + mean_at, mean_bytes);
    faiss::VectorIOReader reader;
    reader.data.assign(blob.begin() + static_cast<int64_t>(payload_at), blob.end());
    read.index.reset(faiss::read_index(&reader));
    as_expected = HasShape(*read.index, shape, rows, dim) && reader.rp == reader.data.size();
  }));
  if (!as_expected) return absl::DataLossError(absl::StrCat(text, ": the index blob holds something else"));
  return read;
}

}  // namespace mneme
