// SPDX-License-Identifier: Apache-2.0
#include "storage/keys.h"

#include <type_traits>

#include "absl/strings/str_cat.h"

#include "base/checksum.h"

namespace mneme {
namespace {

template <typename T>
void AppendBig(std::string& out, T value) {
  static_assert(std::is_unsigned_v<T>);
  for (size_t i = sizeof(T); i > 0; --i)
    out.push_back(static_cast<char>(static_cast<uint64_t>(value) >> (8 * (i - 1))));
}

template <typename T>
T LoadBig(const char* in) {
  uint64_t value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value = value << 8 | static_cast<uint8_t>(in[i]);
  return static_cast<T>(value);
}

// Layer -1 (the token columns) sorts before layer 0.
uint32_t LayerNumber(int32_t layer) {
  return static_cast<uint32_t>(layer) + 1;
}

absl::string_view KindName(ColumnKind kind) {
  switch (kind) {
    case ColumnKind::kKeys: return "keys";
    case ColumnKind::kValues: return "values";
    case ColumnKind::kPositions: return "positions";
    case ColumnKind::kTokenIds: return "token ids";
    case ColumnKind::kCodes: return "codes";
    case ColumnKind::kCodeMeans: return "code means";
  }
  return "unknown column";
}

}  // namespace

std::string ManifestKey(absl::string_view name) {
  return absl::StrCat(absl::string_view(&kManifestPrefix, 1), name);
}

std::string OwnerKey(uint64_t owner) {
  std::string key;
  AppendBig(key, owner);
  return key;
}

std::optional<uint64_t> ParseOwner(absl::string_view key) {
  if (key.size() < sizeof(uint64_t)) return std::nullopt;
  return LoadBig<uint64_t>(key.data());
}

std::string ChunkKey(SegmentId segment, const Column& column, int64_t chunk) {
  std::string key = OwnerKey(segment);
  AppendBig(key, LayerNumber(column.layer));
  AppendBig(key, static_cast<uint32_t>(column.head));
  AppendBig(key, static_cast<uint8_t>(column.kind));
  AppendBig(key, static_cast<uint64_t>(chunk));
  return key;
}

std::string LogKey(SegmentId segment, int64_t first_row, int32_t layer) {
  std::string key = OwnerKey(segment);
  AppendBig(key, static_cast<uint64_t>(first_row));
  AppendBig(key, LayerNumber(layer));
  return key;
}

std::optional<ParsedLogKey> ParseLogKey(absl::string_view key) {
  if (key.size() != 20) return std::nullopt;
  ParsedLogKey parsed;
  parsed.segment = LoadBig<uint64_t>(key.data());
  parsed.first_row = static_cast<int64_t>(LoadBig<uint64_t>(key.data() + 8));
  parsed.layer = static_cast<int32_t>(LoadBig<uint32_t>(key.data() + 16) - 1);
  if (parsed.first_row < 0 || parsed.layer < -1) return std::nullopt;
  return parsed;
}

std::string IndexKey(IndexId index, int32_t layer, int32_t head, uint64_t generation, uint32_t piece) {
  std::string key = OwnerKey(index);
  AppendBig(key, LayerNumber(layer));
  AppendBig(key, static_cast<uint32_t>(head));
  AppendBig(key, generation);
  AppendBig(key, piece);
  return key;
}

uint64_t KeySeed(absl::string_view key) {
  // Two halves with different seeds: a 64-bit seed from the 32-bit checksum.
  return static_cast<uint64_t>(Checksum32(key.data(), key.size(), 1)) << 32 | Checksum32(key.data(), key.size(), 2);
}

std::string ChunkName(SegmentId segment, const Column& column, int64_t chunk) {
  return absl::StrCat("segment ", segment, " layer ", column.layer, " head ", column.head, " ", KindName(column.kind),
                      " chunk ", chunk, " (rows ", chunk * kChunkRows, " to ", (chunk + 1) * kChunkRows - 1, ")");
}

}  // namespace mneme
