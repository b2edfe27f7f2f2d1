// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_SEEDED_SCAN_H_
#define MNEME_MEMORY_ATTEND_SEEDED_SCAN_H_

#include <cstdint>
#include <memory_resource>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"

#include "memory/attend/search_plan.h"
#include "memory/attend/seed_rows.h"
#include "memory/seed_cache.h"

namespace mneme {

// Rows [row_begin, row_end) of an entry of MemoryView::rows.
struct RowRange {
  const VisibleRows* rows;
  int64_t row_begin;
  int64_t row_end;
};

// Empty lists, [heads][queries], with room for what `rows` rows can add.
std::pmr::vector<TopK> MakeEmptyTopK(const RetrieveRequest& request, absl::Span<const int32_t> heads, size_t queries,
                                     int64_t rows, std::pmr::memory_resource* arena);

// Scans part of the memory, with exact results, for queries [query_begin, query_end) of query heads that share one KV
// head.
class SeededScan {
 public:
  struct Part {
    int64_t kv_head;
    absl::Span<const int32_t> heads;
    int64_t query_begin;
    int64_t query_end;
    // Rows [row_begin, row_end) of `ranges`, numbered through all of them.
    absl::Span<const RowRange> ranges;
    int64_t row_begin;
    int64_t row_end;
  };
  // Receives the best rows of some queries: top [heads][queries]. Each query comes once.
  using OnResult = absl::FunctionRef<void(absl::Span<const int64_t> queries, absl::Span<const TopK> top)>;

  // The buffers lie in `arena`, which outlives the object, as `plan`, `part` and `on_result` do.
  SeededScan(const SearchPlan& plan, const Part& part, OnResult on_result, std::pmr::memory_resource* arena)
      : plan_(plan), part_(part), on_result_(on_result), arena_(arena), query_seeds_(arena) {}

  // Scans without any seeds.
  void RunUnseeded();

  // Gives each query a known threshold (SeedRows), so that the scan skips more rows. It comes from `seeds`, the rows
  // that the layer's last query retrieved. Of 16 queries or more, every eighth is searched first, then those halfway
  // between, and so on, with thresholds from the rows of a neighbour.
  void Run(const SeedTokens& seeds);

 private:
  std::pmr::vector<TopK> Scan(absl::Span<const int64_t> queries, absl::Span<const float> known_thresholds);
  // Every `stride`-th query of the part from its query number `begin` on.
  std::pmr::vector<int64_t> QueriesAt(int64_t begin, int64_t stride) const;
  // Returns: [heads][queries]. seed_rows(g, query) is the SeedRows for a query of head part_.heads[g].
  template <typename SeedRowsOf>
  std::pmr::vector<float> KnownThresholdsBy(absl::Span<const int64_t> queries, const SeedRowsOf& seed_rows) const;
  std::optional<SeedRows>& QuerySeeds(size_t g, int64_t query) {
    return query_seeds_[static_cast<size_t>(query - part_.query_begin) * part_.heads.size() + g];
  }
  // Sets the QuerySeeds of `queries` to the rows that they retrieved: best [heads][queries]. Sorts these lists, so that
  // the receiver need not.
  void KeepSeeds(absl::Span<const int64_t> queries, absl::Span<TopK> best);

  const SearchPlan& plan_;
  const Part& part_;
  const OnResult on_result_;
  std::pmr::memory_resource* const arena_;
  std::pmr::vector<std::optional<SeedRows>> query_seeds_;  // [queries][heads]
};

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_SEEDED_SCAN_H_
