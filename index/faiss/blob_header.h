// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_FAISS_BLOB_HEADER_H_
#define MNEME_INDEX_FAISS_BLOB_HEADER_H_

// Internal to index/: the header that every index blob begins with, little endian:
//   magic [8]  version u32  checksum u32 (of all other bytes)

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>

#include "absl/strings/string_view.h"

#include "base/checksum.h"

namespace mneme {

static_assert(std::endian::native == std::endian::little, "numbers are written as they lie in memory");

inline constexpr size_t kBlobMagicBytes = 8;
inline constexpr size_t kBlobVersionAt = 8;
inline constexpr size_t kBlobChecksumAt = 12;
inline constexpr size_t kBlobBodyAt = 16;

// Requires: at least kBlobBodyAt bytes.
inline uint32_t BlobChecksum(absl::string_view blob) {
  const uint32_t start = Checksum32(blob.data(), kBlobChecksumAt);
  return Checksum32(blob.data() + kBlobBodyAt, blob.size() - kBlobBodyAt, start);
}

template <typename T>
void PutNumber(std::string& blob, size_t at, T value) {
  std::memcpy(blob.data() + at, &value, sizeof(value));
}

template <typename T>
T GetNumber(absl::string_view blob, size_t at) {
  T value;
  std::memcpy(&value, blob.data() + at, sizeof(value));
  return value;
}

}  // namespace mneme

#endif  // MNEME_INDEX_FAISS_BLOB_HEADER_H_
