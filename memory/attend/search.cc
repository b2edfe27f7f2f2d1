// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/search.h"

#include <algorithm>
#include <limits>
#include <memory_resource>
#include <optional>
#include <vector>

#include "base/status.h"
#include "memory/attend/gathered_rows.h"
#include "memory/attend/memory_search.h"

namespace mneme {
namespace {

// What a search retrieved for one sequence.
struct Retrieved {
  std::optional<MemoryView> view;  // none: the sequence has no memory
  std::pmr::vector<TopK> top;      // [queries][query_heads]
  GatheredRows keys, values;       // as far as the request asks for them
};

absl::Status SearchSequence(const SearchRequest& request, const Sequence& sequence, Executor& executor,
                            Retrieved& retrieved) {
  const LayerCard& layer = request.retrieve.layer;
  const bool wants_values = request.values != nullptr;
  MNEME_ASSIGN_OR_RETURN(retrieved.view, MakeMemoryView(request.retrieve, sequence, wants_values, executor));
  const MemoryView& view = *retrieved.view;
  retrieved.top = MakeEmptyResult(request.retrieve, sequence, view);
  const absl::Span<TopK> top = absl::MakeSpan(retrieved.top);
  MNEME_RETURN_IF_ERROR(SearchMemory(request.retrieve, sequence, view, executor, top));
  const DType dtype = sequence.memory->options().stored_dtype;
  if (request.keys != nullptr) {
    MNEME_ASSIGN_OR_RETURN(retrieved.keys, GatheredRows::Read(view, layer, RowKind::kKeys, dtype, top, executor));
  }
  if (wants_values) {
    MNEME_ASSIGN_OR_RETURN(retrieved.values, GatheredRows::Read(view, layer, RowKind::kValues, dtype, top, executor));
  }
  return absl::OkStatus();
}

// Writes one entry of the results: (query * query_heads + head) * top_k + rank, with the query numbered in the batch.
// row: null: padding.
void WriteRow(const SearchRequest& request, const Sequence& sequence, const Retrieved& retrieved, int64_t kv_head,
              int64_t entry, const Scored* row) {
  const LayerCard& layer = request.retrieve.layer;
  request.tokens[entry] = row != nullptr ? row->index : -1;
  if (request.scores != nullptr) {
    request.scores[entry] = row != nullptr ? row->score : -std::numeric_limits<float>::infinity();
  }
  const auto write = [&](const GatheredRows& rows, int64_t dim, float* all) {
    if (all == nullptr) return;
    float* const out = all + entry * dim;
    if (row == nullptr) {
      std::fill(out, out + dim, 0.0f);
    } else {
      DecodeRow(sequence.memory->options().stored_dtype, rows.Row(*retrieved.view, kv_head, row->index), out, dim);
    }
  };
  write(retrieved.keys, layer.key_dim, request.keys);
  write(retrieved.values, layer.value_dim, request.values);
}

void WriteSequence(const SearchRequest& request, const Sequence& sequence, Retrieved& retrieved) {
  const LayerCard& layer = request.retrieve.layer;
  for (int64_t token = sequence.query_begin; token < sequence.query_end; ++token) {
    for (int64_t head = 0; head < layer.query_heads; ++head) {
      absl::Span<const Scored> rows;
      if (retrieved.view.has_value()) {
        rows = retrieved.top[static_cast<size_t>((token - sequence.query_begin) * layer.query_heads + head)].Sorted();
      }
      for (int64_t rank = 0; rank < request.top_k; ++rank) {
        const auto i = static_cast<size_t>(rank);
        WriteRow(request, sequence, retrieved, head / layer.group(),
                 (token * layer.query_heads + head) * request.top_k + rank, i < rows.size() ? &rows[i] : nullptr);
      }
    }
  }
}

}  // namespace

absl::Status Search(const SearchRequest& request, Executor& executor) {
  const absl::Span<const Sequence> sequences = request.retrieve.sequences;
  std::vector<Retrieved> retrieved(sequences.size());
  for (size_t i = 0; i < sequences.size(); ++i) {
    if (sequences[i].memory == nullptr) continue;
    MNEME_RETURN_IF_ERROR(SearchSequence(request, sequences[i], executor, retrieved[i]));
  }
  for (size_t i = 0; i < sequences.size(); ++i) WriteSequence(request, sequences[i], retrieved[i]);
  return absl::OkStatus();
}

}  // namespace mneme
