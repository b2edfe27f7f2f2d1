// SPDX-License-Identifier: Apache-2.0
#include "base/out_of_memory.h"

#include "absl/strings/str_cat.h"

namespace mneme {
namespace {

// Made while the library is loaded. Never destroyed: other threads may fail while the process ends.
const absl::Status* const made_before = new absl::Status(absl::StatusCode::kResourceExhausted, "out of memory");

}  // namespace

absl::Status OutOfMemoryError(absl::string_view doing) noexcept {
  try {
    return absl::ResourceExhaustedError(absl::StrCat(doing, ": out of memory"));
  } catch (const std::bad_alloc&) {
    return *made_before;
  }
}

}  // namespace mneme
