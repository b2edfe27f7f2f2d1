// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_STORAGE_CHUNK_H_
#define MNEME_STORAGE_CHUNK_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace mneme {

// The value that holds up to kChunkRows rows of one column: a header with a checksum for every 4 KiB sub-block,
// then the rows. The checksums are seeded by the key, so that no chunk passes for another.

inline constexpr size_t kSubBlockBytes = 4096;
inline constexpr size_t kMaxRowBytes = size_t{1} << 20;

// The header of a chunk of `rows` rows under `key`; the value is header + rows.
// rows.size() is a multiple of row_bytes, of at least 1 and at most kChunkRows rows.
std::string EncodeChunkHeader(absl::string_view key, absl::Span<const char> rows, size_t row_bytes);

// Copies rows [begin, end) of the chunk into `rows` ((end - begin) * row_bytes bytes) after it has verified the
// header and the sub-blocks that hold them. DataLoss says what is wrong ("header checksum", …), not where.
absl::Status DecodeChunkRows(absl::string_view key, absl::string_view value, size_t row_bytes, int64_t begin,
                             int64_t end, absl::Span<char> rows);

// The same for single rows, ascending, one behind the other in `rows`.
absl::Status DecodeChunkRows(absl::string_view key, absl::string_view value, size_t row_bytes,
                             absl::Span<const int64_t> which, absl::Span<char> rows);

// For rows that are read apart from the header into their place. Whether the bytes of rows [begin, end) are whole
// sub-blocks, so that they can be verified alone; and their verification, `header` being the first ChunkHeaderBytes.
bool AreWholeSubBlocks(size_t value_bytes, size_t row_bytes, int64_t begin, int64_t end);
absl::Status VerifyChunkRows(absl::string_view key, absl::string_view header, size_t value_bytes, size_t row_bytes,
                             int64_t begin, absl::Span<const char> rows);

struct ByteRange {
  size_t begin = 0;
  size_t end = 0;
};

// The bytes of a chunk's value that DecodeChunkRows looks at: its header, whose size follows from the value's; and the
// sub-blocks of rows `which`, ascending, some of them in one range. Ranges end with the value.
size_t ChunkHeaderBytes(size_t value_bytes);
std::vector<ByteRange> ChunkRanges(size_t value_bytes, size_t row_bytes, absl::Span<const int64_t> which);

// Verifies the whole chunk, which must hold at least `least_rows` rows of `row_bytes`.
absl::Status VerifyChunk(absl::string_view key, absl::string_view value, size_t row_bytes, int64_t least_rows);

}  // namespace mneme

#endif  // MNEME_STORAGE_CHUNK_H_
