// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_STORAGE_LOG_RECORD_H_
#define MNEME_STORAGE_LOG_RECORD_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

#include "storage/database.h"

namespace mneme {

// The value of one log record, rows > 0 and below 2^31.
std::string EncodeLogRecord(absl::string_view key, int64_t rows, absl::Span<const char> bytes);

// first_row comes from the key. DataLoss if key or value are damaged.
absl::StatusOr<LogRecord> DecodeLogRecord(absl::string_view key, absl::string_view value);

}  // namespace mneme

#endif  // MNEME_STORAGE_LOG_RECORD_H_
