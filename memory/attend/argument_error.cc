// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/argument_error.h"

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"

#include "base/status.h"

namespace mneme {
namespace {

// The payload of an argument error: one byte, the Argument.
constexpr absl::string_view kPayload = "mneme/argument";

}  // namespace

absl::string_view ArgumentName(Argument argument) {
  switch (argument) {
    case Argument::kNone: break;
    case Argument::kBatch: return "batch";
    case Argument::kMemories: return "memories";
    case Argument::kGraph: return "graph";
    case Argument::kStream: return "stream";
    case Argument::kQuery: return "query";
    case Argument::kMemoryQuery: return "memory_query";
    case Argument::kOutput: return "output";
    case Argument::kLocalKeys: return "local_keys";
    case Argument::kLocalValues: return "local_values";
    case Argument::kLocalMask: return "local_mask";
    case Argument::kMaskOffsets: return "mask_offsets";
    case Argument::kQueryOffsets: return "query_offsets";
    case Argument::kLocalOffsets: return "local_offsets";
    case Argument::kQueryPositions: return "query_positions";
    case Argument::kMemoryBegin: return "memory_begin";
    case Argument::kMemoryEnd: return "memory_end";
    case Argument::kMemoryMass: return "memory_mass";
    case Argument::kRetrievedTokens: return "retrieved_tokens";
    case Argument::kRetrievedStride: return "retrieved_stride";
    case Argument::kTopK: return "top_k";
    case Argument::kPositionPolicy: return "position_policy";
    case Argument::kNormaliseQuery: return "normalise_query";
  }
  return "";
}

absl::Status ArgumentError(const UnsupportedReason& reason) {
  if (reason.supported()) return absl::OkStatus();
  std::string message(ArgumentName(reason.argument));
  if (reason.element >= 0) absl::StrAppend(&message, "[", reason.element, "]");
  if (!reason.attribute.empty()) absl::StrAppend(&message, ".", reason.attribute);
  absl::StrAppend(&message, ": expected ", reason.expected, ", got ", reason.got);
  absl::Status status(reason.code, message);
  status.SetPayload(kPayload, absl::Cord(std::string(1, static_cast<char>(reason.argument))));
  return status;
}

std::optional<Argument> ArgumentOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kPayload);
  if (!payload.has_value() || payload->size() != 1) return std::nullopt;
  return static_cast<Argument>((*payload)[0]);
}

absl::Status CheckFinite(Argument argument, const RowTensor& tensor, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    for (int64_t head = 0; head < tensor.heads; ++head) {
      if (AllFinite(tensor.dtype, tensor.Row(row, head), static_cast<size_t>(tensor.dim))) continue;
      return ArgumentError({.argument = argument,
                            .expected = "finite numbers",
                            .got = absl::StrCat("NaN or infinity in row ", row, " of head ", head),
                            .code = absl::StatusCode::kInvalidArgument});
    }
  }
  return absl::OkStatus();
}

}  // namespace mneme
