// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_STORAGE_KEYS_H_
#define MNEME_STORAGE_KEYS_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

#include "storage/database.h"

namespace mneme {

// Keys are fixed-width and big-endian, so that bytes sort as numbers and everything of one owner is one range.
// docs/design/format.md has the grammar.

inline constexpr size_t kMaxNameBytes = 255;

// Column family `default`.
inline constexpr absl::string_view kVersionKey = "v";
inline constexpr absl::string_view kNextIdsKey = "n";
inline constexpr char kManifestPrefix = 'm';
std::string ManifestKey(absl::string_view name);

// Column families `rows`, `log` and `index` begin with the owner's id.
std::string OwnerKey(uint64_t owner);
std::optional<uint64_t> ParseOwner(absl::string_view key);

// `rows`
std::string ChunkKey(SegmentId segment, const Column& column, int64_t chunk);

// `log`. By row before layer: what chunks supersede is one range.
std::string LogKey(SegmentId segment, int64_t first_row, int32_t layer);
struct ParsedLogKey {
  SegmentId segment = 0;
  int64_t first_row = 0;
  int32_t layer = 0;
};
std::optional<ParsedLogKey> ParseLogKey(absl::string_view key);

// `index`. Generation 0 is the header, the pieces of generation g > 0 follow it.
std::string IndexKey(IndexId index, int32_t layer, int32_t head, uint64_t generation, uint32_t piece);

// The checksum seed that ties a value to its key.
uint64_t KeySeed(absl::string_view key);

// "segment 7 layer 3 head 1 keys chunk 2 (rows 512 to 767)": how errors name a chunk.
std::string ChunkName(SegmentId segment, const Column& column, int64_t chunk);

}  // namespace mneme

#endif  // MNEME_STORAGE_KEYS_H_
