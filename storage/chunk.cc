#include "storage/chunk.h"

#include <algorithm>
#include <cstring>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

#include "base/checksum.h"
#include "base/status.h"
#include "storage/coding.h"
#include "storage/database.h"
#include "storage/keys.h"

namespace mneme {
namespace {

constexpr uint32_t kChunkMagic = 0x48434e4d;  // "MNCH"
constexpr uint32_t kChunkVersion = 1;
constexpr size_t kFixedBytes = 20;  // magic, version, rows, row bytes, header checksum

size_t SubBlocks(size_t bytes) {
  return (bytes + kSubBlockBytes - 1) / kSubBlockBytes;
}

struct Parsed {
  int64_t rows = 0;
  const char* checksums = nullptr;
  absl::string_view payload;
};

// The header checksum covers all of the header but itself.
uint32_t HeaderChecksum(absl::string_view fixed, absl::string_view checksums, uint64_t seed) {
  return Checksum32(checksums.data(), checksums.size(), seed + Checksum32(fixed.data(), fixed.size(), seed));
}

absl::StatusOr<Parsed> ParseHeader(absl::string_view value, size_t row_bytes, uint64_t seed) {
  if (value.size() < kFixedBytes) return absl::DataLossError("shorter than its header");
  if (LoadLittle<uint32_t>(value.data()) != kChunkMagic) return absl::DataLossError("wrong magic number");
  const uint32_t version = LoadLittle<uint32_t>(value.data() + 4);
  const uint32_t rows = LoadLittle<uint32_t>(value.data() + 8);
  const uint32_t stored_row_bytes = LoadLittle<uint32_t>(value.data() + 12);
  if (version != kChunkVersion) return absl::DataLossError(absl::StrCat("unknown chunk version ", version));
  if (rows == 0 || rows > kChunkRows || stored_row_bytes == 0 || stored_row_bytes > kMaxRowBytes) {
    return absl::DataLossError("impossible sizes in its header");
  }
  const size_t payload_bytes = size_t{rows} * stored_row_bytes;
  const size_t checksum_bytes = 4 * SubBlocks(payload_bytes);
  if (value.size() != kFixedBytes + checksum_bytes + payload_bytes) {
    return absl::DataLossError(
        absl::StrCat("is ", value.size(), " bytes, its header says ", kFixedBytes + checksum_bytes + payload_bytes));
  }
  const absl::string_view checksums = value.substr(kFixedBytes, checksum_bytes);
  if (LoadLittle<uint32_t>(value.data() + 16) != HeaderChecksum(value.substr(0, 16), checksums, seed)) {
    return absl::DataLossError("header checksum differs");
  }
  if (stored_row_bytes != row_bytes) {
    return absl::DataLossError(absl::StrCat("has rows of ", stored_row_bytes, " bytes, expected ", row_bytes));
  }
  Parsed parsed;
  parsed.rows = rows;
  parsed.checksums = checksums.data();
  parsed.payload = value.substr(kFixedBytes + checksum_bytes);
  return parsed;
}

// Verifies the sub-blocks that hold payload bytes [begin, end).
absl::Status VerifyBytes(const Parsed& parsed, size_t begin, size_t end, uint64_t seed) {
  for (size_t block = begin / kSubBlockBytes; block * kSubBlockBytes < end; ++block) {
    const absl::string_view bytes = parsed.payload.substr(block * kSubBlockBytes, kSubBlockBytes);
    if (Checksum32(bytes.data(), bytes.size(), seed) != LoadLittle<uint32_t>(parsed.checksums + 4 * block)) {
      return absl::DataLossError(absl::StrCat("checksum of sub-block ", block, " differs"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::string EncodeChunkHeader(absl::string_view key, absl::Span<const char> rows, size_t row_bytes) {
  const uint64_t seed = KeySeed(key);
  std::string fixed;
  AppendLittle(fixed, kChunkMagic);
  AppendLittle(fixed, kChunkVersion);
  AppendLittle(fixed, static_cast<uint32_t>(rows.size() / row_bytes));
  AppendLittle(fixed, static_cast<uint32_t>(row_bytes));
  std::string checksums;
  for (size_t at = 0; at < rows.size(); at += kSubBlockBytes) {
    AppendLittle(checksums, Checksum32(rows.data() + at, std::min(kSubBlockBytes, rows.size() - at), seed));
  }
  const uint32_t checksum = HeaderChecksum(fixed, checksums, seed);
  AppendLittle(fixed, checksum);
  return fixed + checksums;
}

absl::Status DecodeChunkRows(absl::string_view key, absl::string_view value, size_t row_bytes, int64_t begin,
                             int64_t end, absl::Span<char> rows) {
  const uint64_t seed = KeySeed(key);
  MNEME_ASSIGN_OR_RETURN(const Parsed parsed, ParseHeader(value, row_bytes, seed));
  if (end > parsed.rows) {
    return absl::DataLossError(absl::StrCat("holds ", parsed.rows, " rows, row ", end - 1, " was asked for"));
  }
  const size_t from = static_cast<size_t>(begin) * row_bytes;
  const size_t to = static_cast<size_t>(end) * row_bytes;
  MNEME_RETURN_IF_ERROR(VerifyBytes(parsed, from, to, seed));
  std::memcpy(rows.data(), parsed.payload.data() + from, to - from);
  return absl::OkStatus();
}

absl::Status VerifyChunk(absl::string_view key, absl::string_view value, size_t row_bytes, int64_t least_rows) {
  const uint64_t seed = KeySeed(key);
  MNEME_ASSIGN_OR_RETURN(const Parsed parsed, ParseHeader(value, row_bytes, seed));
  if (parsed.rows < least_rows) {
    return absl::DataLossError(absl::StrCat("holds ", parsed.rows, " rows, expected ", least_rows));
  }
  return VerifyBytes(parsed, 0, parsed.payload.size(), seed);
}

}  // namespace mneme
