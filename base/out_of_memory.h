// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_OUT_OF_MEMORY_H_
#define MNEME_BASE_OUT_OF_MEMORY_H_

#include <exception>
#include <new>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace mneme {

// Returns: ResourceExhausted, "<doing>: out of memory". Where there is no memory even for that text, a status that was
// made before says "out of memory" alone.
absl::Status OutOfMemoryError(absl::string_view doing) noexcept;

// Runs `body`, which returns an absl::Status, where an exception must not end what goes on around it.
//
// Returns: what `body` returns; OutOfMemoryError if it throws bad_alloc, Internal if it throws another
// exception.
template <typename Body>
absl::Status CatchExceptions(absl::string_view doing, const Body& body) noexcept {
  try {
    try {
      return body();
    } catch (const std::bad_alloc&) {
      throw;
    } catch (const std::exception& error) {
      return absl::InternalError(absl::StrCat(doing, ": ", error.what()));
    }
  } catch (...) {
    return OutOfMemoryError(doing);
  }
}

}  // namespace mneme

#endif  // MNEME_BASE_OUT_OF_MEMORY_H_
