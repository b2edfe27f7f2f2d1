// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "memory/memory.h"

namespace mneme {
namespace {

// Tokens [first_token, end) of one layer, which one segment has.
struct TokenRows {
  std::shared_ptr<Segment> segment;
  int64_t first_token = 0;
  int64_t end = 0;
};

TokenRows FindRows(const MemoryState& state, int64_t layer_end, int64_t token) {
  for (const SegmentView& view : state.sealed) {
    if (token >= view.first_token && token < view.end()) return {view.segment, view.first_token, view.end()};
  }
  return {state.tail, state.tail_first, layer_end};
}

// Copies tokens [begin, end) out of one segment to their places in `request`.
absl::Status CopyTokens(const TokenRows& source, size_t layer, int64_t begin, int64_t end, DType stored,
                        const LayerCard& shape, const ReadRequest& request) {
  std::vector<float> scratch(static_cast<size_t>(std::max(shape.key_dim, shape.value_dim)));
  const int64_t rows = end - source.first_token;
  MNEME_ASSIGN_OR_RETURN(const auto keys, source.segment->Keys(layer, rows));
  MNEME_ASSIGN_OR_RETURN(const auto values, source.segment->Values(layer, rows));
  MNEME_ASSIGN_OR_RETURN(const auto columns, source.segment->Columns(std::min(rows, source.segment->ColumnRows())));
  for (int64_t token = begin; token < end; ++token) {
    const int64_t row = token - source.first_token;
    const int64_t out = token - request.begin;
    for (int64_t head = 0; head < shape.kv_heads; ++head) {
      const auto place = static_cast<size_t>(head);
      if (request.keys.data != nullptr) {
        keys->heads[place]->Decode(row, scratch.data());
        std::memcpy(request.keys.Row(out, head), scratch.data(), sizeof(float) * static_cast<size_t>(shape.key_dim));
      }
      if (request.values.data != nullptr) {
        DecodeRow(stored, values->heads[place]->Row(row), scratch.data(), shape.value_dim);
        std::memcpy(request.values.Row(out, head), scratch.data(),
                    sizeof(float) * static_cast<size_t>(shape.value_dim));
      }
    }
    if (request.positions != nullptr) request.positions[out] = columns->Position(row);
    if (request.token_ids != nullptr) request.token_ids[out] = columns->TokenId(row);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Memory::Read(const ReadRequest& request) const {
  const int found = card_.FindLayer(request.layer);
  if (found < 0) {
    return absl::InvalidArgumentError(absl::StrCat("layer: expected one of the card's, got ", request.layer));
  }
  const auto layer = static_cast<size_t>(found);
  const std::shared_ptr<const MemoryState> now = state();
  const int64_t layer_end = now->LayerEnd(layer);
  const int64_t end = request.begin + request.tokens;
  if (request.begin < 0 || request.tokens < 0 || end > layer_end) {
    return absl::OutOfRangeError(absl::StrCat("begin, tokens: expected a range within [0, ", layer_end, "), got [",
                                              request.begin, ", ", end, ")"));
  }
  for (int64_t token = request.begin; token < end;) {
    if (token >= now->pinned_tokens && token < now->first_kept) {
      return absl::OutOfRangeError(absl::StrCat("begin, tokens: token ", token, " is evicted; tokens ", now->first_kept,
                                                " to ", layer_end, " are held"));
    }
    const TokenRows source = FindRows(*now, layer_end, token);
    const int64_t stop = std::min(end, source.end);
    MNEME_RETURN_IF_ERROR(CopyTokens(source, layer, token, stop, options_.stored_dtype, card_.layers[layer], request));
    token = stop;
  }
  return absl::OkStatus();
}

absl::Status Memory::DecodeKeys(const MemoryState& state, size_t layer, int32_t head, int64_t first, int64_t tokens,
                                float* keys) const {
  const int64_t dim = card_.layers[layer].key_dim;
  std::fill(keys, keys + tokens * dim, 0.0f);
  for (const SegmentView& view : state.sealed) {
    const int64_t begin = std::max(first, view.first_token);
    const int64_t end = std::min(first + tokens, view.end());
    if (begin >= end) continue;
    MNEME_ASSIGN_OR_RETURN(const auto rows, view.segment->Keys(layer, view.rows));
    for (int64_t token = begin; token < end; ++token) {
      rows->heads[static_cast<size_t>(head)]->Decode(token - view.first_token, keys + (token - first) * dim);
    }
  }
  return absl::OkStatus();
}

}  // namespace mneme
