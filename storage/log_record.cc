// SPDX-License-Identifier: Apache-2.0
#include "storage/log_record.h"

#include <limits>
#include <optional>

#include "base/checksum.h"
#include "storage/coding.h"
#include "storage/keys.h"

namespace mneme {
namespace {

constexpr uint32_t kLogMagic = 0x314c4e4d;  // "MNL1": magic and version
constexpr size_t kHeaderBytes = 12;         // checksum, magic, rows

}  // namespace

std::string EncodeLogRecord(absl::string_view key, int64_t rows, absl::Span<const char> bytes) {
  std::string value;
  value.reserve(kHeaderBytes + bytes.size());
  AppendLittle(value, uint32_t{0});
  AppendLittle(value, kLogMagic);
  AppendLittle(value, static_cast<uint32_t>(rows));
  value.append(bytes.data(), bytes.size());
  std::string checksum;
  AppendLittle(checksum, Checksum32(value.data() + 4, value.size() - 4, KeySeed(key)));
  value.replace(0, 4, checksum);
  return value;
}

absl::StatusOr<LogRecord> DecodeLogRecord(absl::string_view key, absl::string_view value) {
  const std::optional<ParsedLogKey> parsed = ParseLogKey(key);
  if (!parsed) return absl::DataLossError("log record under a malformed key");
  if (value.size() < kHeaderBytes) return absl::DataLossError("log record is shorter than its header");
  if (LoadLittle<uint32_t>(value.data()) != Checksum32(value.data() + 4, value.size() - 4, KeySeed(key))) {
    return absl::DataLossError("checksum of log record differs");
  }
  const uint32_t rows = LoadLittle<uint32_t>(value.data() + 8);
  if (LoadLittle<uint32_t>(value.data() + 4) != kLogMagic || rows == 0 ||
      rows > static_cast<uint32_t>(std::numeric_limits<int32_t>::max())) {
    return absl::DataLossError("log record of an unknown kind");
  }
  LogRecord record;
  record.first_row = parsed->first_row;
  record.rows = rows;
  record.bytes.assign(value.data() + kHeaderBytes, value.size() - kHeaderBytes);
  return record;
}

}  // namespace mneme
