// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/reported_rows.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "memory/attend/argument_error.h"

namespace mneme {
namespace {

absl::Status TokenError(int64_t at, std::string expected, std::string got,
                        absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
  return ArgumentError({.argument = Argument::kRetrievedTokens,
                        .expected = std::move(expected),
                        .got = std::move(got),
                        .element = at,
                        .code = code});
}

}  // namespace

ReportedRows::ReportedRows(const AttendRequest& request, const Sequence& sequence, std::pmr::memory_resource* arena)
    : request_(request), sequence_(sequence), view_(arena), plan_(arena), top_(arena), counts_(arena), sorted_(arena) {
  plan_.request = &request.retrieve;
  plan_.sequence = &sequence;
  plan_.view = &view_;
  plan_.errors = &errors_;
}

int64_t ReportedRows::SlotOf(int64_t query, int64_t head) const {
  return (sequence_.query_begin + query) * request_.retrieve.layer.query_heads + head;
}

absl::Span<const int64_t> ReportedRows::Tokens(int64_t query, int64_t head) const {
  const int64_t* const first = request_.retrieved_tokens + SlotOf(query, head) * request_.retrieved_stride;
  const int64_t own_slot = query * request_.retrieve.layer.query_heads + head;  // within the sequence
  return {first, static_cast<size_t>(counts_[static_cast<size_t>(own_slot)])};
}

absl::Status ReportedRows::CheckToken(int64_t at) const {
  const int64_t token = request_.retrieved_tokens[at];
  if (view_.FindVisible(token) != nullptr) return absl::OkStatus();
  const MemoryState& state = *view_.snapshot.state;
  const bool evicted = token >= state.pinned_tokens && token < state.first_kept;
  return TokenError(at, evicted ? "a token that is held, or a snapshot that holds it" : "a token that is visible",
                    absl::StrCat(token, evicted ? ", which is evicted" : ", which is not"),
                    absl::StatusCode::kOutOfRange);
}

absl::Status ReportedRows::CheckSlot(int64_t slot, int64_t top_k, int64_t* count) {
  const int64_t stride = request_.retrieved_stride;
  const int64_t first = slot * stride;
  const int64_t* const tokens = request_.retrieved_tokens + first;
  *count = std::find_if(tokens, tokens + stride, [](int64_t token) { return token < 0; }) - tokens;
  for (int64_t i = *count; i < stride; ++i) {
    if (tokens[i] == -1) continue;
    return TokenError(first + i, "-1 after the last row", absl::StrCat(tokens[i]));
  }
  if (*count > top_k) {
    return TokenError(first + top_k, absl::StrCat("-1 after the head's ", top_k, " rows"), absl::StrCat(tokens[top_k]));
  }
  if (*count == stride && stride < std::min(top_k, visible_rows_)) {
    return ArgumentError(
        {.argument = Argument::kRetrievedStride,
         .expected = absl::StrCat("room for all rows that a head retrieved, up to ", std::min(top_k, visible_rows_)),
         .got = absl::StrCat(stride),
         .code = absl::StatusCode::kInvalidArgument});
  }
  for (int64_t i = 0; i < *count; ++i) MNEME_RETURN_IF_ERROR(CheckToken(first + i));
  sorted_.assign(tokens, tokens + *count);
  std::sort(sorted_.begin(), sorted_.end());
  const auto twice = std::adjacent_find(sorted_.begin(), sorted_.end());
  if (twice == sorted_.end()) return absl::OkStatus();
  return TokenError(first, "each token once", absl::StrCat(*twice, " twice in the ", stride, " places from there"));
}

absl::Status ReportedRows::Read(Executor& executor) {
  const RetrieveRequest& retrieve = request_.retrieve;
  std::pmr::memory_resource* const arena = top_.get_allocator().resource();
  MNEME_ASSIGN_OR_RETURN(view_, MakeMemoryView(retrieve, sequence_, true, executor, arena));
  visible_rows_ = view_.RowCount();
  const int64_t queries = sequence_.query_end - sequence_.query_begin;
  const auto slots = static_cast<size_t>(queries * retrieve.layer.query_heads);
  counts_.resize(slots);
  sorted_.reserve(static_cast<size_t>(std::min(request_.retrieved_stride, visible_rows_)));
  top_.reserve(slots);
  for (int64_t query = 0; query < queries; ++query) {
    for (int64_t head = 0; head < retrieve.layer.query_heads; ++head) {
      const int64_t slot = SlotOf(query, head);
      int64_t count = 0;
      MNEME_RETURN_IF_ERROR(CheckSlot(slot, retrieve.heads[static_cast<size_t>(head)].top_k, &count));
      counts_[top_.size()] = count;
      most_tokens_ = std::max(most_tokens_, count);
      TopK& top = top_.emplace_back(count, count, arena);
      for (const int64_t token : Tokens(query, head)) top.Push(0, token);
    }
  }
  const absl::Span<TopK> top = absl::MakeSpan(top_);
  const DType stored = sequence_.memory->options().stored_dtype;
  MNEME_ASSIGN_OR_RETURN(keys_, GatheredRows::Read(view_, retrieve.layer, RowKind::kKeys, stored, top, executor));
  MNEME_ASSIGN_OR_RETURN(values_, GatheredRows::Read(view_, retrieve.layer, RowKind::kValues, stored, top, executor));
  return FillSearchPlan(plan_, executor);
}

}  // namespace mneme
