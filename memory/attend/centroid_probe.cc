// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/centroid_probe.h"

#include <algorithm>
#include <cstring>
#include <memory_resource>
#include <vector>

#include "base/prefetch.h"
#include "base/scratch.h"
#include "base/status.h"
#include "index/centroid/centroid_search.h"
#include "memory/attend/seeded_scan.h"
#include "memory/segment/missing_rows.h"
#include "memory/store_context.h"

namespace mneme {
namespace {

// The keys of one KV head by their row in an index: in RAM or on disk, in several segments. Only visible rows are read.
class RunKeys final : public KeySource {
 public:
  RunKeys(const SearchPlan& plan, int64_t first_token, int64_t kv_head)
      : KeySource(plan.stored_dtype(), plan.request->layer.key_dim),
        view_(*plan.view),
        first_token_(first_token),
        kv_head_(kv_head) {}

  absl::Status Read(absl::Span<const int64_t> rows, absl::Span<char> keys) override {
    missing_.clear();
    places_.clear();
    for (size_t i = 0; i < rows.size(); ++i) {
      const VisibleRows& owner = view_.Find(first_token_ + rows[i]);
      const int64_t row = first_token_ + rows[i] - owner.first_token;
      if (owner.keys != nullptr) {
        std::memcpy(keys.data() + i * row_bytes(), owner.keys->heads[static_cast<size_t>(kv_head_)]->Row(row),
                    row_bytes());
      } else {
        missing_.push_back({owner.segment.get(), row});
        places_.push_back(i);
      }
    }
    if (missing_.empty()) return absl::OkStatus();
    read_.resize(missing_.size() * row_bytes());
    MNEME_RETURN_IF_ERROR(
        ReadMissingRows(view_.layer, kv_head_, RowKind::kKeys, missing_, row_bytes(), absl::MakeSpan(read_)));
    for (size_t i = 0; i < places_.size(); ++i) {
      std::memcpy(keys.data() + places_[i] * row_bytes(), read_.data() + i * row_bytes(), row_bytes());
    }
    return absl::OkStatus();
  }

  void Prefetch(absl::Span<const int64_t> rows) override {
    for (const int64_t number : rows) {
      const VisibleRows& owner = view_.Find(first_token_ + number);
      const int64_t row = first_token_ + number - owner.first_token;
      if (owner.keys != nullptr) {
        PrefetchBytes(owner.keys->heads[static_cast<size_t>(kv_head_)]->Row(row), row_bytes());
      } else {
        owner.segment->PrefetchRows(view_.layer, static_cast<int32_t>(kv_head_), RowKind::kKeys,
                                    absl::MakeConstSpan(&row, 1));
      }
    }
  }

 private:
  const MemoryView& view_;
  const int64_t first_token_;
  const int64_t kv_head_;
  // Of one Read:
  std::vector<MissingRow> missing_;
  std::vector<size_t> places_;
  std::vector<char> read_;
};

// The calling thread's object, whose buffers have grown to what earlier searches needed.
CentroidSearch& ThreadCentroidSearch() {
  thread_local CentroidSearch search;
  return search;
}

}  // namespace

absl::Status ProbeCentroids(const SearchPlan& plan, const VisibleRun& visible, const CentroidIndex& index,
                            int64_t kv_head, absl::Span<const int32_t> heads, int64_t query_begin, int64_t query_end,
                            TopK* top) {
  const auto dim = static_cast<size_t>(plan.request->layer.key_dim);
  const int64_t first_token = visible.run->first_token(), queries = query_end - query_begin;
  Scratch scratch;
  std::pmr::vector<float> vectors(heads.size() * dim, &scratch);
  std::pmr::vector<Ranking> rankings(heads.size(), &scratch);
  RunKeys keys(plan, first_token, kv_head);
  std::pmr::vector<TopK> best =
      MakeEmptyTopK(*plan.request, heads, 1, visible.token_end - visible.token_begin, &scratch);
  CentroidSearch& search = ThreadCentroidSearch();
  CentroidCounts counts;
  for (int64_t query = query_begin; query < query_end; ++query) {
    for (size_t g = 0; g < heads.size(); ++g) {
      std::copy_n(plan.Vector(heads[g], query), dim, vectors.data() + g * dim);
      rankings[g] = plan.RankingOfUnpinned(heads[g], query, first_token);
      best[g].Reset(best[g].k());
    }
    const CentroidQuery request = {.queries = vectors.data(),
                                   .count = static_cast<int64_t>(heads.size()),
                                   .rankings = rankings.data(),
                                   .keys = &keys,
                                   .row_begin = visible.token_begin - first_token,
                                   .row_end = visible.token_end - first_token,
                                   .first_token = first_token,
                                   .top = best.data()};
    MNEME_RETURN_IF_ERROR(search.Run(index, request, &counts));
    for (size_t g = 0; g < heads.size(); ++g) {
      top[static_cast<int64_t>(g) * queries + query - query_begin].Merge(best[g]);
    }
  }
  plan.sequence->memory->context().scan_counters().Add(counts.scan);
  return absl::OkStatus();
}

}  // namespace mneme
