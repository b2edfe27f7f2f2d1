// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/seeded_scan.h"

#include <algorithm>

#include "memory/attend/token_range_scan.h"

namespace mneme {
namespace {

// The queries that are searched first stand this far apart. A power of two.
constexpr int64_t kFirstStride = 8;

}  // namespace

std::pmr::vector<TopK> MakeEmptyTopK(const RetrieveRequest& request, absl::Span<const int32_t> heads, size_t queries,
                                     int64_t rows, std::pmr::memory_resource* arena) {
  std::pmr::vector<TopK> top(arena);
  top.reserve(heads.size() * queries);
  for (const int32_t head : heads) {
    for (size_t i = 0; i < queries; ++i) top.emplace_back(request.heads[static_cast<size_t>(head)].top_k, rows, arena);
  }
  return top;
}

void SeededScan::RunUnseeded() {
  const std::pmr::vector<int64_t> all = QueriesAt(0, 1);
  on_result_(all, Scan(all, {}));
}

void SeededScan::Run(const SeedTokens& seeds) {
  const absl::Span<const int32_t> heads = part_.heads;
  std::pmr::vector<SeedRows> layer_seeds(arena_);  // [heads]
  layer_seeds.reserve(heads.size());
  for (const int32_t head : heads) {
    layer_seeds.emplace_back(plan_, part_.kv_head, head, seeds.OfHead(static_cast<size_t>(head)), arena_);
  }
  const auto by_layer = [&](size_t g, int64_t) -> const SeedRows& { return layer_seeds[g]; };
  const int64_t count = part_.query_end - part_.query_begin;
  if (count < 2 * kFirstStride) {
    const std::pmr::vector<int64_t> all = QueriesAt(0, 1);
    on_result_(all, Scan(all, KnownThresholdsBy(all, by_layer)));
    return;
  }
  query_seeds_.resize(static_cast<size_t>(count) * heads.size());
  const std::pmr::vector<int64_t> first = QueriesAt(0, kFirstStride);
  std::pmr::vector<TopK> best = Scan(first, KnownThresholdsBy(first, by_layer));
  KeepSeeds(first, absl::MakeSpan(best));
  on_result_(first, best);
  for (int64_t stride = kFirstStride; stride > 1; stride /= 2) {
    const std::pmr::vector<int64_t> between = QueriesAt(stride / 2, stride);
    const auto by_neighbour = [&](size_t g, int64_t query) -> const SeedRows& {
      return *QuerySeeds(g, query - stride / 2);
    };
    best = Scan(between, KnownThresholdsBy(between, by_neighbour));
    if (stride > 2) KeepSeeds(between, absl::MakeSpan(best));
    on_result_(between, best);
  }
}

std::pmr::vector<TopK> SeededScan::Scan(absl::Span<const int64_t> queries, absl::Span<const float> known_thresholds) {
  std::pmr::vector<TopK> top =
      MakeEmptyTopK(*plan_.request, part_.heads, queries.size(), part_.row_end - part_.row_begin, arena_);
  TokenRangeScan& scan = ThreadTokenRangeScan();
  scan.Begin(plan_, part_.kv_head, part_.heads, queries, known_thresholds, top.data());
  int64_t counted = 0;
  for (const RowRange& range : part_.ranges) {
    const int64_t begin = std::max(range.row_begin, range.row_begin + part_.row_begin - counted);
    const int64_t end = std::min(range.row_end, range.row_begin + part_.row_end - counted);
    counted += range.row_end - range.row_begin;
    if (begin < end) scan.Add(*range.rows, begin, end);
  }
  scan.End();
  return top;
}

std::pmr::vector<int64_t> SeededScan::QueriesAt(int64_t begin, int64_t stride) const {
  std::pmr::vector<int64_t> numbers(arena_);
  numbers.reserve(static_cast<size_t>((part_.query_end - part_.query_begin) / stride + 1));
  for (int64_t query = part_.query_begin + begin; query < part_.query_end; query += stride) numbers.push_back(query);
  return numbers;
}

template <typename SeedRowsOf>
std::pmr::vector<float> SeededScan::KnownThresholdsBy(absl::Span<const int64_t> queries,
                                                      const SeedRowsOf& seed_rows) const {
  std::pmr::vector<float> known_thresholds(arena_);
  known_thresholds.reserve(part_.heads.size() * queries.size());
  for (size_t g = 0; g < part_.heads.size(); ++g) {
    for (const int64_t query : queries) known_thresholds.push_back(seed_rows(g, query).KnownThreshold(query));
  }
  return known_thresholds;
}

void SeededScan::KeepSeeds(absl::Span<const int64_t> queries, absl::Span<TopK> best) {
  std::pmr::vector<int64_t> tokens(arena_);
  for (size_t i = 0; i < best.size(); ++i) {
    const absl::Span<const Scored> rows = best[i].Sorted();
    tokens.resize(rows.size());
    std::transform(rows.begin(), rows.end(), tokens.begin(), [](const Scored& row) { return row.index; });
    const size_t g = i / queries.size();
    QuerySeeds(g, queries[i % queries.size()]).emplace(plan_, part_.kv_head, part_.heads[g], tokens, arena_);
  }
}

}  // namespace mneme
