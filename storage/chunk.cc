// SPDX-License-Identifier: Apache-2.0
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

// `value` may end behind the header of a value of `value_bytes`; then there is no payload.
absl::StatusOr<Parsed> ParseHeader(absl::string_view value, size_t value_bytes, size_t row_bytes, uint64_t seed) {
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
  if (value_bytes != kFixedBytes + checksum_bytes + payload_bytes || value.size() < kFixedBytes + checksum_bytes) {
    return absl::DataLossError(
        absl::StrCat("is ", value_bytes, " bytes, its header says ", kFixedBytes + checksum_bytes + payload_bytes));
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

// Verifies `bytes`, whole sub-blocks of the payload from number `block` on.
absl::Status VerifyBlocks(const Parsed& parsed, size_t block, absl::string_view bytes, uint64_t seed) {
  for (size_t at = 0; at < bytes.size(); at += kSubBlockBytes, ++block) {
    const size_t size = std::min(kSubBlockBytes, bytes.size() - at);
    if (Checksum32(bytes.data() + at, size, seed) != LoadLittle<uint32_t>(parsed.checksums + 4 * block)) {
      return absl::DataLossError(absl::StrCat("checksum of sub-block ", block, " differs"));
    }
  }
  return absl::OkStatus();
}

// Verifies the sub-blocks that hold payload bytes [begin, end).
absl::Status VerifyBytes(const Parsed& parsed, size_t begin, size_t end, uint64_t seed) {
  const size_t block = begin / kSubBlockBytes;
  const size_t bytes = SubBlocks(end) * kSubBlockBytes - block * kSubBlockBytes;
  return VerifyBlocks(parsed, block, parsed.payload.substr(block * kSubBlockBytes, bytes), seed);
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
  MNEME_ASSIGN_OR_RETURN(const Parsed parsed, ParseHeader(value, value.size(), row_bytes, seed));
  if (end > parsed.rows) {
    return absl::DataLossError(absl::StrCat("holds ", parsed.rows, " rows, row ", end - 1, " was asked for"));
  }
  const size_t from = static_cast<size_t>(begin) * row_bytes;
  const size_t to = static_cast<size_t>(end) * row_bytes;
  MNEME_RETURN_IF_ERROR(VerifyBytes(parsed, from, to, seed));
  std::memcpy(rows.data(), parsed.payload.data() + from, to - from);
  return absl::OkStatus();
}

absl::Status DecodeChunkRows(absl::string_view key, absl::string_view value, size_t row_bytes,
                             absl::Span<const int64_t> which, absl::Span<char> rows) {
  const uint64_t seed = KeySeed(key);
  MNEME_ASSIGN_OR_RETURN(const Parsed parsed, ParseHeader(value, value.size(), row_bytes, seed));
  size_t verified = 0;  // payload bytes below it that rows before have needed are sound
  char* out = rows.data();
  for (const int64_t row : which) {
    if (row >= parsed.rows) {
      return absl::DataLossError(absl::StrCat("holds ", parsed.rows, " rows, row ", row, " was asked for"));
    }
    const size_t from = static_cast<size_t>(row) * row_bytes;
    const size_t to = from + row_bytes;
    if (to > verified) {
      MNEME_RETURN_IF_ERROR(VerifyBytes(parsed, std::max(from, verified), to, seed));
      verified = SubBlocks(to) * kSubBlockBytes;
    }
    out = std::copy_n(parsed.payload.data() + from, row_bytes, out);
  }
  return absl::OkStatus();
}

bool AreWholeSubBlocks(size_t value_bytes, size_t row_bytes, int64_t begin, int64_t end) {
  const size_t from = static_cast<size_t>(begin) * row_bytes, to = static_cast<size_t>(end) * row_bytes;
  return from % kSubBlockBytes == 0 && (to % kSubBlockBytes == 0 || ChunkHeaderBytes(value_bytes) + to == value_bytes);
}

absl::Status VerifyChunkRows(absl::string_view key, absl::string_view header, size_t value_bytes, size_t row_bytes,
                             int64_t begin, absl::Span<const char> rows) {
  const uint64_t seed = KeySeed(key);
  MNEME_ASSIGN_OR_RETURN(const Parsed parsed, ParseHeader(header, value_bytes, row_bytes, seed));
  const size_t from = static_cast<size_t>(begin) * row_bytes;
  const int64_t end = begin + static_cast<int64_t>(rows.size() / row_bytes);
  if (end > parsed.rows)
    return absl::DataLossError(absl::StrCat("holds ", parsed.rows, " rows, row ", end - 1, " was asked for"));
  return VerifyBlocks(parsed, from / kSubBlockBytes, absl::string_view(rows.data(), rows.size()), seed);
}

size_t ChunkHeaderBytes(size_t value_bytes) {
  if (value_bytes <= kFixedBytes) return value_bytes;
  // Every sub-block, the last one perhaps short, comes with four bytes.
  const size_t blocks = (value_bytes - kFixedBytes + kSubBlockBytes + 3) / (kSubBlockBytes + 4);
  return std::min(value_bytes, kFixedBytes + 4 * blocks);
}

std::vector<ByteRange> ChunkRanges(size_t value_bytes, size_t row_bytes, absl::Span<const int64_t> which) {
  // A page more is read sooner than by a read of its own.
  constexpr size_t kGap = 4096;
  const size_t payload = ChunkHeaderBytes(value_bytes);
  std::vector<ByteRange> ranges;
  for (const int64_t row : which) {
    const size_t from = static_cast<size_t>(row) * row_bytes;
    const size_t begin = payload + from / kSubBlockBytes * kSubBlockBytes;
    const size_t end = std::min(value_bytes, payload + SubBlocks(from + row_bytes) * kSubBlockBytes);
    if (begin >= end) break;
    if (!ranges.empty() && begin <= ranges.back().end + kGap) {
      ranges.back().end = std::max(ranges.back().end, end);
    } else {
      ranges.push_back({begin, end});
    }
  }
  return ranges;
}

absl::Status VerifyChunk(absl::string_view key, absl::string_view value, size_t row_bytes, int64_t least_rows) {
  const uint64_t seed = KeySeed(key);
  MNEME_ASSIGN_OR_RETURN(const Parsed parsed, ParseHeader(value, value.size(), row_bytes, seed));
  if (parsed.rows < least_rows) {
    return absl::DataLossError(absl::StrCat("holds ", parsed.rows, " rows, expected ", least_rows));
  }
  return VerifyBytes(parsed, 0, parsed.payload.size(), seed);
}

}  // namespace mneme
