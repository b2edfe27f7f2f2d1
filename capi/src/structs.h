// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_CAPI_SRC_STRUCTS_H_
#define MNEME_CAPI_SRC_STRUCTS_H_

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

#include "capi/src/boundary.h"
#include "capi/src/defaults.h"

namespace mneme::capi {

// No struct will ever be this large; a greater struct_size is an uninitialised one.
inline constexpr size_t kLargestStruct = 1 << 16;

inline absl::Status CheckStructSize(absl::string_view name, size_t struct_size) {
  if (struct_size >= 2 * sizeof(size_t) && struct_size <= kLargestStruct) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, ".struct_size: expected the size of the struct (use its *_INIT macro), got ", struct_size));
}

// Returns: the caller's struct with its defaults set. Fields that an older caller does not know count as zero.
// Errors: Unimplemented for a field of a newer caller that is not zero, since it asks for something.
template <typename Struct>
absl::StatusOr<Struct> ReadStruct(absl::string_view name, const Struct* given) {
  if (given == nullptr) return NullArgument(name);
  size_t struct_size;
  std::memcpy(&struct_size, given, sizeof(struct_size));
  const absl::Status status = CheckStructSize(name, struct_size);
  if (!status.ok()) return status;
  Struct result = {};
  std::memcpy(&result, given, std::min(struct_size, sizeof(Struct)));
  const char* bytes = reinterpret_cast<const char*>(given);
  for (size_t i = sizeof(Struct); i < struct_size; ++i) {
    if (bytes[i] != 0) {
      return absl::UnimplementedError(
          absl::StrCat(name, ": a field at byte ", i, " is set that this version of mneme does not know"));
    }
  }
  result.struct_size = sizeof(Struct);
  SetDefaults(result);
  return result;
}

// Fills as much of the caller's output struct as it knows; the rest of a newer caller's is zeroed.
template <typename Struct>
absl::Status WriteStruct(absl::string_view name, const Struct& result, Struct* out) {
  if (out == nullptr) return NullArgument(name);
  size_t struct_size;
  std::memcpy(&struct_size, out, sizeof(struct_size));
  const absl::Status status = CheckStructSize(name, struct_size);
  if (!status.ok()) return status;
  const size_t known = std::min(struct_size, sizeof(Struct));
  char* bytes = reinterpret_cast<char*>(out);
  std::memcpy(bytes + sizeof(size_t), reinterpret_cast<const char*>(&result) + sizeof(size_t), known - sizeof(size_t));
  std::memset(bytes + known, 0, struct_size - known);
  return absl::OkStatus();
}

}  // namespace mneme::capi

#endif  // MNEME_CAPI_SRC_STRUCTS_H_
