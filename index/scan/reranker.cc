// SPDX-License-Identifier: Apache-2.0
#include "index/scan/reranker.h"

#include <algorithm>
#include <utility>

#include "base/prefetch.h"
#include "index/scan/key_scan.h"

namespace mneme {
namespace {

// Keys are read in batches. While one is ranked, the next two are being fetched.
constexpr size_t kBatch = 16;
constexpr size_t kBatchesAhead = 2;

}  // namespace

absl::Span<const int32_t> Reranker::PrefetchCandidates(int64_t query) {
  Candidates& candidates = state_.Progress(query).candidates;
  if (!candidates.CheaperToRead()) candidates.Prune(state_.Threshold(query));
  const absl::Span<const int32_t> order = candidates.MostPromisingFirst();
  for (size_t batch = 0; batch < kBatchesAhead; ++batch) PrefetchBatch(query, order, batch * kBatch);
  return order;
}

void Reranker::PrefetchBatch(int64_t query, absl::Span<const int32_t> order, size_t begin) {
  const Candidates& candidates = state_.Progress(query).candidates;
  const size_t row_bytes = RowBytes(state_.dtype, state_.dim);
  const float threshold = state_.Threshold(query);
  for (const int32_t number : order.subspan(std::min(begin, order.size()), kBatch)) {
    const Candidate candidate = candidates[static_cast<size_t>(number)];
    if (candidate.upper_bound < threshold) continue;
    const CodedRange& range = state_.ranges[static_cast<size_t>(candidate.range)];
    if (range.keys != nullptr) {
      PrefetchBytes(range.keys->Row(candidate.row), row_bytes);
    } else {
      const int64_t row = range.Row(candidate.row);
      range.source->Prefetch(absl::MakeConstSpan(&row, 1));
    }
  }
}

void Reranker::Rerank(int64_t query, absl::Span<const int32_t> order) {
  Candidates& candidates = state_.Progress(query).candidates;
  for (size_t first = 0; first < order.size() && state_.status.ok(); first += kBatch) {
    PrefetchBatch(query, order, first + kBatchesAhead * kBatch);
    const char* keys[kBatch];
    Candidate batch[kBatch];
    size_t n = 0;
    const float threshold = state_.Threshold(query);
    for (const int32_t number : order.subspan(first, kBatch)) {
      Candidate candidate = candidates[static_cast<size_t>(number)];
      if (candidate.upper_bound < threshold) continue;
      const CodedRange& range = state_.ranges[static_cast<size_t>(candidate.range)];
      candidate.row = range.Row(candidate.row);
      const KeyRows* const in_ram = range.keys;
      keys[n] = in_ram != nullptr ? in_ram->Row(candidate.row) : nullptr;
      batch[n++] = candidate;
    }
    if (n == 0) continue;
    ReadMissingKeys(absl::MakeConstSpan(batch, n), keys);
    if (!state_.status.ok()) break;
    float dots[kBatch];
    DotKeys(state_.dtype, state_.dim, absl::MakeConstSpan(keys, n), state_.Vector(query), dots);
    for (size_t j = 0; j < n; ++j) {
      const auto range = static_cast<size_t>(batch[j].range);
      state_.top[query].Push(state_.RankingOf(query, range).Logit(dots[j], batch[j].row),
                             state_.ranges[range].first_token + batch[j].row);
    }
    state_.counts.reranked += static_cast<int64_t>(n);
  }
  candidates.Clear();
}

void Reranker::ReadMissingKeys(absl::Span<const Candidate> batch, const char** keys) {
  size_t missing[kBatch];
  size_t n = 0;
  for (size_t j = 0; j < batch.size(); ++j) {
    if (keys[j] == nullptr) missing[n++] = j;
  }
  if (n == 0) return;
  std::sort(missing, missing + n, [&](size_t a, size_t b) {
    return std::pair(batch[a].range, batch[a].row) < std::pair(batch[b].range, batch[b].row);
  });
  const size_t row_bytes = RowBytes(state_.dtype, state_.dim);
  key_bytes_.resize(n * row_bytes);
  int64_t rows[kBatch];
  // One read for each range.
  for (size_t first = 0, end; first < n && state_.status.ok(); first = end) {
    const int32_t range = batch[missing[first]].range;
    for (end = first; end < n && batch[missing[end]].range == range; ++end) {
      rows[end] = batch[missing[end]].row;
      keys[missing[end]] = key_bytes_.data() + end * row_bytes;
    }
    state_.status = state_.ranges[static_cast<size_t>(range)].source->Read(
        absl::MakeConstSpan(rows + first, end - first),
        absl::MakeSpan(key_bytes_).subspan(first * row_bytes, (end - first) * row_bytes));
  }
}

}  // namespace mneme
