#include "index/faiss_blob.h"

#include <faiss/impl/io.h>
#include <faiss/index_io.h>

#include <bit>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/checksum.h"
#include "base/status.h"
#include "index/faiss_call.h"

namespace mneme {
namespace {

static_assert(std::endian::native == std::endian::little, "FAISS writes numbers as they lie in memory");

// The blob, little endian:
//   magic [8]  version u32  checksum u32 (of all other bytes)  rows i64  dim i64  text bytes u32  zero u32
//   FAISS bytes u64  text  mean f32 [dim]  FAISS's own bytes
constexpr char kMagic[8] = {'M', 'N', 'E', 'M', 'E', 'K', 'I', 'X'};
constexpr uint32_t kVersion = 1;
constexpr size_t kChecksumAt = 12;
constexpr size_t kChecked = 16;
constexpr size_t kHeader = 48;

uint32_t BlobChecksum(absl::string_view blob) {
  const uint32_t start = Checksum32(blob.data(), kChecksumAt);
  return Checksum32(blob.data() + kChecked, blob.size() - kChecked, start);
}

template <typename T>
void Put(std::string& blob, size_t at, T value) {
  std::memcpy(blob.data() + at, &value, sizeof(value));
}

template <typename T>
T Get(absl::string_view blob, size_t at) {
  T value;
  std::memcpy(&value, blob.data() + at, sizeof(value));
  return value;
}

}  // namespace

absl::StatusOr<std::string> WriteFaissBlob(const FaissShape& shape, const KeySpace& space, const faiss::Index& index) {
  std::string blob;
  MNEME_RETURN_IF_ERROR(Guarded(shape.Text(), [&] {
    faiss::VectorIOWriter writer;
    faiss::write_index(&index, &writer);
    const std::string text = shape.Text();
    const size_t mean_bytes = space.mean.size() * sizeof(float);
    const size_t payload_at = kHeader + text.size() + mean_bytes;
    blob.resize(payload_at + writer.data.size());
    std::memcpy(blob.data(), kMagic, sizeof(kMagic));
    Put(blob, 8, kVersion);
    Put(blob, 16, static_cast<int64_t>(index.ntotal));
    Put(blob, 24, space.dim());
    Put(blob, 32, static_cast<uint32_t>(text.size()));
    Put(blob, 40, static_cast<uint64_t>(writer.data.size()));
    std::memcpy(blob.data() + kHeader, text.data(), text.size());
    std::memcpy(blob.data() + kHeader + text.size(), space.mean.data(), mean_bytes);
    std::memcpy(blob.data() + payload_at, writer.data.data(), writer.data.size());
    Put(blob, kChecksumAt, BlobChecksum(blob));
  }));
  return blob;
}

absl::StatusOr<FaissBlob> ReadFaissBlob(const FaissShape& shape, absl::string_view blob, int64_t rows, int64_t dim) {
  const std::string text = shape.Text();
  if (blob.size() < kHeader || std::memcmp(blob.data(), kMagic, sizeof(kMagic)) != 0 ||
      Get<uint32_t>(blob, kChecksumAt) != BlobChecksum(blob)) {
    return absl::DataLossError(absl::StrCat(text, ": the index blob of ", blob.size(), " bytes is damaged"));
  }
  if (const auto version = Get<uint32_t>(blob, 8); version != kVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat(text, ": the index blob has version ", version, ", this build reads ", kVersion));
  }
  const auto blob_rows = Get<int64_t>(blob, 16);
  const auto blob_dim = Get<int64_t>(blob, 24);
  const auto text_bytes = Get<uint32_t>(blob, 32);
  if (text_bytes > blob.size() - kHeader) return absl::DataLossError(absl::StrCat(text, ": no sense in the header"));
  const absl::string_view blob_text = blob.substr(kHeader, text_bytes);
  if (blob_text != text || blob_rows != rows || blob_dim != dim) {
    return absl::FailedPreconditionError(absl::StrCat("the index blob is \"", blob_text, "\" of ", blob_rows,
                                                      " rows, dim ", blob_dim, "; expected \"", text, "\" of ", rows,
                                                      " rows, dim ", dim));
  }
  const size_t mean_at = kHeader + text_bytes;
  const size_t mean_bytes = static_cast<size_t>(dim) * sizeof(float);
  const size_t payload_at = mean_at + mean_bytes;
  if (blob.size() < payload_at || blob.size() - payload_at != Get<uint64_t>(blob, 40)) {
    return absl::DataLossError(absl::StrCat(text, ": no sense in the header"));
  }

  FaissBlob read;
  bool as_expected = false;
  MNEME_RETURN_IF_ERROR(Guarded(text, [&] {
    read.space.mean.resize(static_cast<size_t>(dim));
    std::memcpy(read.space.mean.data(), blob.data() + mean_at, mean_bytes);
    faiss::VectorIOReader reader;
    reader.data.assign(blob.begin() + static_cast<int64_t>(payload_at), blob.end());
    read.index.reset(faiss::read_index(&reader));
    as_expected = IsOfShape(*read.index, shape, rows, dim) && reader.rp == reader.data.size();
  }));
  if (!as_expected) return absl::DataLossError(absl::StrCat(text, ": the index blob holds something else"));
  return read;
}

}  // namespace mneme
