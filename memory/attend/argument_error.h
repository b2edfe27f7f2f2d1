// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_ARGUMENT_ERROR_H_
#define MNEME_MEMORY_ATTEND_ARGUMENT_ERROR_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

#include "base/tensor.h"

namespace mneme {

// An argument of a call of this folder. A caller may have names of its own for them, so an error carries the number:
// see ArgumentOf.
enum class Argument : uint8_t {
  kNone,
  kBatch,
  kMemories,
  kGraph,
  kStream,
  kQuery,
  kMemoryQuery,
  kOutput,
  kLocalKeys,
  kLocalValues,
  kLocalMask,
  kMaskOffsets,
  kQueryOffsets,
  kLocalOffsets,
  kQueryPositions,
  kMemoryBegin,
  kMemoryEnd,
  kMemoryMass,
  kRetrievedTokens,
  kRetrievedStride,
  kTopK,
  kPositionPolicy,
  kNormaliseQuery,
};

// Returns: the argument's name in this folder, for instance "query_offsets".
absl::string_view ArgumentName(Argument argument);

// Why a call cannot be served: "<argument>[<element>].<attribute>: expected <expected>, got <got>".
struct UnsupportedReason {
  Argument argument = Argument::kNone;  // kNone: the call can be served
  std::string expected;
  std::string got;
  absl::string_view attribute = "";  // of a tensor: "dtype", "strides"
  int64_t element = -1;              // of an array; -1: the whole argument
  absl::StatusCode code = absl::StatusCode::kUnimplemented;

  bool supported() const { return argument == Argument::kNone; }
};

// Returns: the reason as an error, from which ArgumentOf gets the argument back. OK for a call that can be served.
absl::Status ArgumentError(const UnsupportedReason& reason);

// Returns: the argument that an error is about, whose message begins with ArgumentName(argument); none for other
// errors.
std::optional<Argument> ArgumentOf(const absl::Status& status);

// Errors: InvalidArgument if rows [row_begin, row_end) of the tensor, which lies in host memory, have an infinite
// number or NaN.
absl::Status CheckFinite(Argument argument, const RowTensor& tensor, int64_t row_begin, int64_t row_end);
// The same for all rows.
inline absl::Status CheckFinite(Argument argument, const RowTensor& tensor) {
  return CheckFinite(argument, tensor, 0, tensor.rows);
}

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_ARGUMENT_ERROR_H_
