// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>
#include <vector>

#include "attention/state.h"
#include "base/status.h"
#include "capi/src/structs.h"
#include "capi/src/tensors.h"

namespace mneme::capi {
namespace {

absl::Status Merge(const mneme_merge_args& args) {
  MNEME_ASSIGN_OR_RETURN(const RowTensor a, ReadRowTensor("args.a_output", args.a_output));
  MNEME_ASSIGN_OR_RETURN(const RowTensor b, ReadRowTensor("args.b_output", args.b_output));
  MNEME_ASSIGN_OR_RETURN(const MutableRowTensor output, ReadMutableRowTensor("args.output", args.output));
  MNEME_RETURN_IF_ERROR(CheckShape("args.b_output", b.rows, b.heads, b.dim, a.rows, a.heads, a.dim));
  MNEME_RETURN_IF_ERROR(CheckShape("args.output", output.rows, output.heads, output.dim, a.rows, a.heads, a.dim));
  const bool gated = args.gate != nullptr;
  const bool needs_lse = !gated || args.log_sum_exp != nullptr;
  if (needs_lse && args.a_log_sum_exp == nullptr) return NullArgument("args.a_log_sum_exp");
  if (needs_lse && args.b_log_sum_exp == nullptr) return NullArgument("args.b_log_sum_exp");
  for (int64_t head = 0; gated && head < a.heads; ++head) {
    if (std::isnan(args.gate[head])) {
      return absl::InvalidArgumentError(absl::StrCat("args.gate[", head, "]: expected a number, got NaN"));
    }
  }
  const auto check_lse = [&](absl::string_view name, const float* lse) -> absl::Status {
    for (int64_t slot = 0; needs_lse && slot < a.rows * a.heads; ++slot) {
      if (lse[slot] < std::numeric_limits<float>::infinity()) continue;
      return absl::InvalidArgumentError(
          absl::StrCat(name, "[", slot, "]: expected a finite number or -infinity, got ", lse[slot]));
    }
    return absl::OkStatus();
  };
  MNEME_RETURN_IF_ERROR(check_lse("args.a_log_sum_exp", args.a_log_sum_exp));
  MNEME_RETURN_IF_ERROR(check_lse("args.b_log_sum_exp", args.b_log_sum_exp));
  const auto dim = static_cast<size_t>(a.dim);
  std::vector<float> left(dim), right(dim), scratch(dim);
  for (int64_t row = 0; row < a.rows; ++row) {
    for (int64_t head = 0; head < a.heads; ++head) {
      const int64_t slot = row * a.heads + head;
      ConvertToF32(a.dtype, a.Row(row, head), left.data(), dim);
      ConvertToF32(b.dtype, b.Row(row, head), right.data(), dim);
      float lse = 0;
      if (needs_lse) {
        lse = args.a_log_sum_exp[slot];
        // Merges `left` by log-sum-exp; gated, only the number is wanted.
        scratch = left;
        MergeState(scratch.data(), &lse, right.data(), args.b_log_sum_exp[slot], a.dim);
      }
      if (gated) {
        GateState(right.data(), left.data(), args.gate[head], a.dim);
      } else {
        right = scratch;
      }
      ConvertFromF32(right.data(), output.dtype, output.Row(row, head), dim);
      if (args.log_sum_exp != nullptr) args.log_sum_exp[slot] = lse;
    }
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace mneme::capi

extern "C" {

using namespace mneme::capi;  // NOLINT: the entry point only

mneme_status mneme_merge(const mneme_merge_args* args) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const mneme_merge_args given, ReadStruct("args", args));
    return Merge(given);
  });
}

}  // extern "C"
