// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/index_search.h"

#include <algorithm>
#include <memory_resource>
#include <numeric>
#include <vector>

#include "base/scratch.h"
#include "base/status.h"
#include "index/faiss/row_groups.h"
#include "memory/attend/centroid_probe.h"
#include "memory/attend/token_range_scan.h"

namespace mneme {
namespace {

// Candidates that an index is asked for, for each row to retrieve.
constexpr int64_t kCandidatesPerRow = 4;
constexpr int64_t kFewestCandidates = 64;

// Ranks candidates of one index by their exact keys. An index may number groups of rows with equal keys instead of
// rows; then one key of each group is read.
class GroupRanker {
 public:
  GroupRanker(const SearchPlan& plan, const VisibleRun& visible, const KeyIndex& index, int64_t kv_head)
      : plan_(plan), visible_(visible), groups_(index.groups()), kv_head_(kv_head) {}

  // Pushes the visible rows of the groups `numbers`, as far as they may be among the k best. Negative numbers are
  // padding. Returns: how many rows were pushed.
  int64_t Rank(int32_t head, int64_t query, absl::Span<const int64_t> numbers, TopK& best) {
    const MemoryView& view = *plan_.view;
    keys_.clear();
    visible_groups_.clear();
    for (const int64_t number : numbers) {
      if (number < 0) continue;
      const TokenGroup group = VisiblePart(number);
      if (group.count == 0) continue;
      const VisibleRows& owner = view.Find(group.token(0));
      visible_groups_.push_back(group);
      keys_.push_back(owner.keys->heads[static_cast<size_t>(kv_head_)]->Row(group.token(0) - owner.first_token));
    }
    dots_.resize(keys_.size());
    DotKeys(plan_.stored_dtype(), plan_.request->layer.key_dim, keys_, plan_.Vector(head, query), dots_.data());
    int64_t pushed = 0;
    for (size_t i = 0; i < visible_groups_.size(); ++i) pushed += Push(head, query, visible_groups_[i], dots_[i], best);
    return pushed;
  }

 private:
  // Tokens with equal keys, ascending.
  struct TokenGroup {
    int64_t first_token;  // of the index; without `rows`, the group's only token
    const int32_t* rows;  // [count]
    int64_t count;

    int64_t token(int64_t i) const { return rows == nullptr ? first_token : first_token + rows[i]; }
  };

  TokenGroup VisiblePart(int64_t number) const {
    const int64_t first_token = visible_.run->first_token();
    const int64_t begin = visible_.token_begin - first_token, end = visible_.token_end - first_token;
    if (groups_ == nullptr) return {first_token + number, nullptr, begin <= number && number < end ? 1 : 0};
    const absl::Span<const int32_t> rows = groups_->Rows(number);
    const auto from = std::lower_bound(rows.begin(), rows.end(), begin);
    return {first_token, rows.data() + (from - rows.begin()), std::lower_bound(from, rows.end(), end) - from};
  }

  // Returns: how many rows were pushed.
  int64_t Push(int32_t head, int64_t query, const TokenGroup& group, float dot, TopK& best) const {
    const VisibleRows* owner = nullptr;
    Ranking ranking;
    int64_t count = group.count;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t token = group.token(i);
      if (owner == nullptr || token >= owner->token_end()) {
        owner = &plan_.view->Find(token);
        ranking = plan_.RankingOf(head, query, *owner);
        // Without decay all rows of the group have one logit, and a tie goes to the lower token.
        if (ranking.decay == 0) count = std::min(count, std::max<int64_t>(best.k(), 1));
      }
      best.Push(ranking.Logit(dot, token - owner->first_token), token);
    }
    return count;
  }

  const SearchPlan& plan_;
  const VisibleRun& visible_;
  const RowGroups* const groups_;  // null: the index numbers rows
  const int64_t kv_head_;
  // One entry a visible group:
  std::vector<TokenGroup> visible_groups_;
  std::vector<const char*> keys_;
  std::vector<float> dots_;
};

// Scans all rows that `visible` covers, exactly.
void ScanInstead(const SearchPlan& plan, const VisibleRun& visible, int64_t kv_head, absl::Span<const int32_t> heads,
                 int64_t query_begin, int64_t query_end, TopK* top) {
  Scratch scratch;
  std::pmr::vector<int64_t> queries(static_cast<size_t>(query_end - query_begin), &scratch);
  std::iota(queries.begin(), queries.end(), query_begin);
  TokenRangeScan& scan = ThreadTokenRangeScan();
  scan.Begin(plan, kv_head, heads, queries, {}, top);
  for (const VisibleRows& owner : plan.view->rows) {
    const int64_t begin = std::max(owner.token_begin(), visible.token_begin) - owner.first_token;
    const int64_t end = std::min(owner.token_end(), visible.token_end) - owner.first_token;
    if (begin < end) scan.Add(owner, begin, end);
  }
  scan.End();
}

}  // namespace

absl::Status SearchIndex(const SearchPlan& plan, const VisibleRun& visible, int64_t kv_head,
                         absl::Span<const int32_t> heads, int64_t query_begin, int64_t query_end, TopK* top) {
  const RetrieveRequest& request = *plan.request;
  const MemoryView& view = *plan.view;
  const IndexRun& run = *visible.run;
  const int64_t queries = query_end - query_begin;
  int64_t wanted = 0;
  for (const int32_t head : heads) wanted = std::max(wanted, request.heads[static_cast<size_t>(head)].top_k);
  const int64_t visible_tokens = visible.token_end - visible.token_begin;
  // Candidates may be invisible, so the smaller the visible part, the more of them are asked for.
  const double widen = static_cast<double>(run.tokens()) / static_cast<double>(visible_tokens);
  const double asked =
      std::max<double>(kFewestCandidates, kCandidatesPerRow * static_cast<double>(std::min(wanted, visible_tokens)));
  auto fetch = static_cast<int64_t>(std::min<double>(asked * widen, static_cast<double>(run.tokens())));
  const auto rises = [&](int32_t head) { return plan.RankingOfUnpinned(head, query_begin, 0).RisesWithDot(); };
  if (fetch >= run.tokens() ||
      (run.spec().kind == IndexKind::kCentroid && !std::all_of(heads.begin(), heads.end(), rises))) {
    // The scan reads no row more than the index would give. Clusters are searched in the order of the dot product, so
    // they cannot serve a head whose logit does not rise with it.
    ScanInstead(plan, visible, kv_head, heads, query_begin, query_end, top);
    return absl::OkStatus();
  }
  MNEME_ASSIGN_OR_RETURN(
      const std::shared_ptr<const KeyIndex> index,
      visible.run->Get(view.layer, static_cast<int32_t>(kv_head), [&](size_t layer, int32_t head, float* keys) {
        return plan.sequence->memory->DecodeKeys(*view.snapshot.state, layer, head, run.first_token(), run.tokens(),
                                                 keys);
      }));
  if (const CentroidIndex* const centroids = index->AsCentroid(); centroids != nullptr) {
    return ProbeCentroids(plan, visible, *centroids, kv_head, heads, query_begin, query_end, top);
  }
  // There may be far fewer groups of equal keys than rows.
  fetch = std::min(fetch, index->groups() == nullptr ? index->rows() : index->groups()->groups());
  std::vector<float> vectors;
  std::vector<int64_t> candidates(static_cast<size_t>(queries * fetch));
  GroupRanker ranker(plan, visible, *index, kv_head);
  for (size_t g = 0; g < heads.size(); ++g) {
    vectors.assign(plan.Vector(heads[g], query_begin),
                   plan.Vector(heads[g], query_begin) + queries * request.layer.key_dim);
    MNEME_RETURN_IF_ERROR(index->Search(vectors.data(), queries, fetch, candidates.data()));
    for (int64_t query = 0; query < queries; ++query) {
      TopK& best = top[static_cast<int64_t>(g) * queries + query];
      const auto numbers =
          absl::MakeConstSpan(candidates).subspan(static_cast<size_t>(query * fetch), static_cast<size_t>(fetch));
      const int64_t ranked = ranker.Rank(heads[g], query_begin + query, numbers, best);
      if (ranked >= std::min(request.heads[static_cast<size_t>(heads[g])].top_k, visible_tokens)) continue;
      // The lists that the index probed held too few rows, or too many candidates are not visible.
      best.Reset(best.k());
      ScanInstead(plan, visible, kv_head, absl::MakeConstSpan(&heads[g], 1), query_begin + query,
                  query_begin + query + 1, &best);
    }
  }
  return absl::OkStatus();
}

}  // namespace mneme
