// SPDX-License-Identifier: Apache-2.0
#include "index/scan/code_scan.h"

#include <algorithm>
#include <limits>
#include <memory_resource>
#include <vector>

#include "base/scratch.h"
#include "index/scan/block_scan.h"
#include "index/scan/code_scan_kernel.h"
#include "index/scan/key_scan.h"
#include "index/scan/reranker.h"
#include "index/scan/scan_state.h"

namespace mneme {
namespace {

// Fewer rows than this are compared by their keys, because coding the queries would take longer.
constexpr int64_t kMinCodedRows = 64;

// A scan keeps the buffers of at most this many queries for the next scan.
constexpr size_t kMaxKeptQueries = 512;

}  // namespace

class CodeScan::Impl {
 public:
  // use_estimates: whether rows are dropped by estimated thresholds, at the risk of a second scan.
  explicit Impl(bool use_estimates) : use_estimates_(use_estimates) {}

  void Begin(const float* queries, int64_t count, int64_t dim, const float* known_thresholds, TopK* top) {
    state_.queries = queries;
    state_.count = count;
    state_.dim = dim;
    state_.top = top;
    state_.ranges.clear();
    state_.rankings.clear();
    state_.counts = ScanCounts();
    state_.status = absl::OkStatus();
    std::vector<QueryProgress>& progress = state_.progress;
    progress.resize(std::max(static_cast<size_t>(count), std::min(progress.size(), kMaxKeptQueries)));
    for (int64_t i = 0; i < count; ++i) {
      QueryProgress& own = state_.Progress(i);
      own.known_threshold = known_thresholds != nullptr ? known_thresholds[i] : -std::numeric_limits<float>::infinity();
      own.candidates.Reset(top[i].k(), use_estimates_);
    }
  }

  // Either `keys` or `source` is null.
  void Add(const KeyRows* keys, KeySource* source, const KeyCodes& key_codes, int64_t row_begin, int64_t row_end,
           int64_t first_token, const Ranking* rankings) {
    const int64_t count = state_.count;
    if (row_begin >= row_end || count <= 0 || !state_.status.ok()) return;
    state_.dtype = keys != nullptr ? keys->dtype() : source->dtype();
    const auto rises = [](const Ranking& ranking) { return ranking.RisesWithDot(); };
    int64_t coded_end = std::min(row_end, key_codes.rows());
    if (coded_end - row_begin < kMinCodedRows || !std::all_of(rankings, rankings + count, rises)) coded_end = row_begin;
    if (coded_end > row_begin) {
      AddCoded({.keys = keys,
                .source = source,
                .codes = &key_codes,
                .row_begin = row_begin,
                .row_end = coded_end,
                .first_token = first_token},
               rankings);
    }
    if (keys != nullptr) {
      ScanTopK(*keys, coded_end, row_end, first_token, state_.queries, count, rankings, state_.top);
    } else {
      state_.status = ScanTopK(*source, coded_end, row_end, first_token, state_.queries, count, rankings, state_.top);
    }
    state_.counts.by_key += count * (row_end - coded_end);
  }

  void AddCoded(const CodedRange& range, const Ranking* rankings) {
    state_.dtype = range.keys != nullptr ? range.keys->dtype() : range.source->dtype();
    state_.ranges.push_back(range);
    state_.rankings.insert(state_.rankings.end(), rankings, rankings + state_.count);
    state_.counts.by_code += state_.count * range.RowCount();
  }

  absl::StatusOr<ScanCounts> End() {
    if (!state_.status.ok()) return state_.status;
    if (state_.ranges.empty()) return state_.counts;
    block_scan_.Run(codes::CurrentKernels(), use_estimates_);
    // While the candidates of one query are reranked, the keys of the next query's are being fetched.
    absl::Span<const int32_t> order = reranker_.PrefetchCandidates(0);
    for (int64_t i = 0; i < state_.count && state_.status.ok(); ++i) {
      const absl::Span<const int32_t> next =
          i + 1 < state_.count ? reranker_.PrefetchCandidates(i + 1) : absl::Span<const int32_t>();
      reranker_.Rerank(i, order);
      order = next;
      // Dropping rows by the estimated threshold was right if the k-th best row reaches it.
      if (state_.status.ok() && state_.Progress(i).candidates.estimated_threshold() > state_.Threshold(i)) Rescan(i);
    }
    if (!state_.status.ok()) return state_.status;
    return state_.counts;
  }

 private:
  // Scans all coded rows for query i again, without estimates.
  void Rescan(int64_t i) {
    if (rescan_ == nullptr) rescan_ = std::make_unique<Impl>(/*use_estimates=*/false);
    int64_t rows = 0;
    for (const CodedRange& range : state_.ranges) rows += range.RowCount();
    TopK& top = state_.top[i];
    Scratch scratch;
    TopK best(top.k(), rows, &scratch);
    const float known_threshold = state_.Threshold(i);
    rescan_->Begin(state_.Vector(i), 1, state_.dim, &known_threshold, &best);
    for (size_t r = 0; r < state_.ranges.size(); ++r) rescan_->AddCoded(state_.ranges[r], &state_.RankingOf(i, r));
    state_.counts.rescanned += rows;
    const absl::StatusOr<ScanCounts> counts = rescan_->End();
    if (!counts.ok()) {
      state_.status = counts.status();
      return;
    }
    state_.counts.reranked += counts->reranked;
    // `best` holds some rows that are in `top` already.
    const absl::Span<const Scored> before = top.Sorted();
    std::pmr::vector<int64_t> known(&scratch);
    known.reserve(before.size());
    for (const Scored& row : before) known.push_back(row.index);
    for (const Scored& row : best.Sorted()) {
      if (std::find(known.begin(), known.end(), row.index) == known.end()) top.Push(row.score, row.index);
    }
  }

  const bool use_estimates_;
  ScanState state_;
  Reranker reranker_{&state_};
  BlockScan block_scan_{&state_, &reranker_};
  std::unique_ptr<Impl> rescan_;  // made when it is first needed
};

CodeScan::CodeScan() : impl_(std::make_unique<Impl>(/*use_estimates=*/true)) {}
CodeScan::~CodeScan() = default;

void CodeScan::Begin(const float* queries, int64_t count, int64_t dim, const float* known_thresholds, TopK* top) {
  impl_->Begin(queries, count, dim, known_thresholds, top);
}

void CodeScan::Add(const KeyRows& keys, const KeyCodes& key_codes, int64_t row_begin, int64_t row_end,
                   int64_t first_token, const Ranking* rankings) {
  impl_->Add(&keys, nullptr, key_codes, row_begin, row_end, first_token, rankings);
}

void CodeScan::Add(KeySource& keys, const KeyCodes& key_codes, int64_t row_begin, int64_t row_end, int64_t first_token,
                   const Ranking* rankings) {
  impl_->Add(nullptr, &keys, key_codes, row_begin, row_end, first_token, rankings);
}

void CodeScan::AddReordered(KeySource& keys, const ReorderedRows& rows, int64_t first_token, const Ranking* rankings) {
  if (rows.blocks.empty()) return;
  impl_->AddCoded({.keys = nullptr,
                   .source = &keys,
                   .codes = rows.codes,
                   .row_begin = rows.row_begin,
                   .row_end = rows.row_end,
                   .first_token = first_token,
                   .blocks = rows.blocks,
                   .row_numbers = rows.row_numbers},
                  rankings);
}

absl::StatusOr<ScanCounts> CodeScan::End() {
  return impl_->End();
}

void ScanCodesTopK(const KeyRows& keys, const KeyCodes& key_codes, int64_t row_begin, int64_t row_end,
                   int64_t first_token, const float* queries, int64_t count, const Ranking* rankings,
                   const float* known_thresholds, TopK* top, ScanCounts* counts) {
  CodeScan scan;
  scan.Begin(queries, count, keys.dim(), known_thresholds, top);
  scan.Add(keys, key_codes, row_begin, row_end, first_token, rankings);
  *counts = *scan.End();  // only a KeySource can fail
}

absl::string_view CodeScanKernelName() {
  return codes::CurrentKernels().name;
}

}  // namespace mneme
