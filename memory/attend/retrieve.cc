// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/retrieve.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <new>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"

#include "base/mutex.h"
#include "base/scratch.h"
#include "base/status.h"
#include "index/faiss/row_groups.h"
#include "memory/attend/mixed_tasks.h"
#include "memory/attend/piece_scan.h"
#include "memory/attend/retrieve_plan.h"

namespace mneme {
namespace {

// A work item scans at least this many rows: below, handing it out costs more than it saves.
constexpr int64_t kMinRowsPerItem = 2048;
// Query tokens of one work item: enough to use each load of a key many times, and no more, for what the queries collect
// should stay in the second-level cache.
constexpr int64_t kQueriesPerItem = 16;
// Of many neighbouring queries every so manieth goes first, then those halfway between, and so on: what a query finds
// tells the next ones beside it how good a row has to be. A power of two.
constexpr int64_t kFirstStride = 8;
// Of fewer rows each is looked at sooner than what seeds tell.
constexpr int64_t kLeastSeededRows = 1024;
// So many exact keys are looked at for each row wanted, roughly, where codes rule out the rest.
constexpr int64_t kKeysPerRow = 3;
// An index gives this many candidates for each row wanted; the exact keys then choose.
constexpr int64_t kCandidatesPerRow = 4;
constexpr int64_t kMinCandidates = 64;

// An index and the part of its tokens that the sequence may see.
struct VisibleRun {
  std::shared_ptr<IndexRun> run;
  int64_t token_begin = 0;
  int64_t token_end = 0;
};

// Cuts [begin, end) of one owner to the visible token ranges and adds the pieces to `rows`.
void AddPieces(const std::shared_ptr<Segment>& segment, int64_t first_token, int64_t rows_end, const MemoryState& state,
               int64_t begin, int64_t end, std::pmr::vector<VisibleRows>& rows) {
  const auto add = [&](int64_t from, int64_t to, bool pinned) {
    from = std::max({from, begin, first_token});
    to = std::min({to, end, first_token + rows_end});
    if (from >= to) return;
    VisibleRows piece;
    piece.segment = segment;
    piece.first_token = first_token;
    piece.row_begin = from - first_token;
    piece.row_end = to - first_token;
    piece.pinned = pinned;
    rows.push_back(std::move(piece));
  };
  add(0, state.pinned_tokens, true);
  add(std::max(state.pinned_tokens, state.first_kept), std::numeric_limits<int64_t>::max(), false);
}

// Rows [row_begin, row_end) of a piece that are scanned.
struct ScannedRows {
  const VisibleRows* piece;
  int64_t row_begin;
  int64_t row_end;
};

// `piece` without the tokens of `runs` (ascending), added to `rest`.
void AddUncovered(const VisibleRows& piece, absl::Span<const VisibleRun> runs, std::pmr::vector<ScannedRows>& rest) {
  int64_t token = piece.token_begin();
  const auto add = [&](int64_t end) {
    if (token < end) rest.push_back({&piece, token - piece.first_token, end - piece.first_token});
  };
  for (const VisibleRun& run : runs) {
    if (run.token_end <= token || run.token_begin >= piece.token_end()) continue;
    add(std::min(run.token_begin, piece.token_end()));
    token = std::max(token, std::min(run.token_end, piece.token_end()));
  }
  add(piece.token_end());
}

std::pmr::vector<int64_t> Numbers(int64_t begin, int64_t end, std::pmr::memory_resource* memory) {
  std::pmr::vector<int64_t> numbers(static_cast<size_t>(end - begin), memory);
  std::iota(numbers.begin(), numbers.end(), begin);
  return numbers;
}

// Ranks what one index found by the exact keys. Of rows with equal keys one key is read.
class GroupRanker {
 public:
  GroupRanker(const RetrievePlan& plan, const VisibleRun& visible, const KeyIndex& index, int64_t kv_head)
      : plan_(plan), visible_(visible), groups_(index.groups()), kv_head_(kv_head) {}

  // Pushes the visible rows of the groups `numbers` (negative ones are skipped) that may be among the k best.
  // Returns: how many.
  int64_t Rank(int32_t head, int64_t query, absl::Span<const int64_t> numbers, TopK& best) {
    const MemoryView& view = *plan_.view;
    keys_.clear();
    found_.clear();
    for (const int64_t number : numbers) {
      if (number < 0) continue;
      const TokenGroup group = Visible(number);
      if (group.count == 0) continue;
      const VisibleRows& owner = view.Find(group.token(0));
      found_.push_back(group);
      keys_.push_back(owner.keys->heads[static_cast<size_t>(kv_head_)]->Row(group.token(0) - owner.first_token));
    }
    dots_.resize(keys_.size());
    DotKeys(plan_.sequence->memory->options().stored_dtype, plan_.request->layer.key_dim, keys_,
            plan_.Vector(head, query), dots_.data());
    int64_t pushed = 0;
    for (size_t i = 0; i < found_.size(); ++i) pushed += Push(head, query, found_[i], dots_[i], best);
    return pushed;
  }

 private:
  // Tokens with equal keys, ascending.
  struct TokenGroup {
    int64_t first_token;  // of the index, or the one token if `rows` is null
    const int32_t* rows;
    int64_t count;

    int64_t token(int64_t i) const { return rows == nullptr ? first_token : first_token + rows[i]; }
  };

  // What is visible of a group, though its first row may not be.
  TokenGroup Visible(int64_t number) const {
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
        // Without decay all have one logit, and ties go to the lower token.
        if (ranking.decay == 0) count = std::min(count, std::max<int64_t>(best.k(), 1));
      }
      best.Push(ranking.Logit(dot, token - owner->first_token), token);
    }
    return count;
  }

  const RetrievePlan& plan_;
  const VisibleRun& visible_;
  const RowGroups* const groups_;
  const int64_t kv_head_;
  std::vector<TokenGroup> found_;  // these three: one a group
  std::vector<const char*> keys_;
  std::vector<float> dots_;
};

// Candidates of one index, re-ranked by the exact keys.
absl::Status SearchRun(const RetrievePlan& plan, const VisibleRun& visible, int64_t kv_head,
                       absl::Span<const int32_t> heads, int64_t query_begin, int64_t query_end, TopK* top) {
  const RetrieveRequest& request = *plan.request;
  const MemoryView& view = *plan.view;
  const IndexRun& run = *visible.run;
  const int64_t queries = query_end - query_begin;
  int64_t wanted = 0;
  for (const int32_t head : heads) wanted = std::max(wanted, request.heads[static_cast<size_t>(head)].top_k);
  const int64_t seen = visible.token_end - visible.token_begin;
  // The more of the index is out of sight, the more must be asked for.
  const double widen = static_cast<double>(run.tokens()) / static_cast<double>(seen);
  const double asked =
      std::max<double>(kMinCandidates, kCandidatesPerRow * static_cast<double>(std::min(wanted, seen)));
  auto fetch = static_cast<int64_t>(std::min<double>(asked * widen, static_cast<double>(run.tokens())));
  const auto scan = [&](absl::Span<const int32_t> which, int64_t begin_query, int64_t end_query, TopK* best) {
    Scratch scratch;
    const std::pmr::vector<int64_t> numbers = Numbers(begin_query, end_query, &scratch);
    PieceScan& pieces = ThreadPieceScan();
    pieces.Begin(plan, kv_head, which, numbers, {}, best);
    for (const VisibleRows& owner : view.rows) {
      const int64_t begin = std::max(owner.token_begin(), visible.token_begin) - owner.first_token;
      const int64_t end = std::min(owner.token_end(), visible.token_end) - owner.first_token;
      if (begin < end) pieces.Add(owner, begin, end);
    }
    pieces.End();
  };
  if (fetch >= run.tokens()) {
    // All of it is asked for, or more than is in sight: the exact scan reads less.
    scan(heads, query_begin, query_end, top);
    return absl::OkStatus();
  }
  MNEME_ASSIGN_OR_RETURN(
      const std::shared_ptr<const KeyIndex> index,
      visible.run->Get(view.layer, static_cast<int32_t>(kv_head), [&](size_t layer, int32_t head, float* keys) {
        return plan.sequence->memory->DecodeKeys(*view.snapshot.state, layer, head, run.first_token(), run.tokens(),
                                                 keys);
      }));
  // There may be far fewer groups of equal keys than rows.
  fetch = std::min(fetch, index->groups() == nullptr ? index->rows() : index->groups()->groups());
  std::vector<float> vectors;
  std::vector<int64_t> found(static_cast<size_t>(queries * fetch));
  GroupRanker ranker(plan, visible, *index, kv_head);
  for (size_t g = 0; g < heads.size(); ++g) {
    vectors.assign(plan.Vector(heads[g], query_begin),
                   plan.Vector(heads[g], query_begin) + queries * request.layer.key_dim);
    MNEME_RETURN_IF_ERROR(index->Search(vectors.data(), queries, fetch, found.data()));
    for (int64_t query = 0; query < queries; ++query) {
      TopK& best = top[static_cast<int64_t>(g) * queries + query];
      const auto numbers =
          absl::MakeConstSpan(found).subspan(static_cast<size_t>(query * fetch), static_cast<size_t>(fetch));
      const int64_t ranked = ranker.Rank(heads[g], query_begin + query, numbers, best);
      if (ranked >= std::min(request.heads[static_cast<size_t>(heads[g])].top_k, seen)) continue;
      // Too few came back (lists probed in vain, most of the index evicted): the exact scan answers instead.
      best.Reset(best.k());
      scan(absl::MakeConstSpan(&heads[g], 1), query_begin + query, query_begin + query + 1, &best);
    }
  }
  return absl::OkStatus();
}

// Empty ones, [heads][queries], with room for what `rows` rows can bring.
std::pmr::vector<TopK> TopsFor(const RetrieveRequest& request, absl::Span<const int32_t> heads, size_t queries,
                               int64_t rows, std::pmr::memory_resource* memory) {
  std::pmr::vector<TopK> top(memory);
  top.reserve(heads.size() * queries);
  for (const int32_t head : heads) {
    for (size_t i = 0; i < queries; ++i) top.emplace_back(request.heads[static_cast<size_t>(head)].top_k, rows, memory);
  }
  return top;
}

// One work item: a group's heads, a range of queries, a part of the memory: rows [scan_begin, scan_end) of all that are
// scanned, counted through, or an index.
struct Item {
  int64_t kv_head;
  int64_t query_begin;
  int64_t query_end;
  int64_t scan_begin;
  int64_t scan_end;
  const VisibleRun* run;  // null: a scan
};

// Takes what was found for `queries` of `heads`: top [heads][queries].
using Found = absl::FunctionRef<void(absl::Span<const int64_t> queries, absl::Span<const TopK> top)>;

// The scan of one work item, which lies in `memory`.
class ItemScan {
 public:
  ItemScan(const RetrievePlan& plan, const Item& item, absl::Span<const int32_t> heads,
           absl::Span<const ScannedRows> scanned, Found found, std::pmr::memory_resource* memory)
      : plan_(plan), item_(item), heads_(heads), scanned_(scanned), found_(found), memory_(memory) {}

  // All queries of the item.
  void RunAll() {
    const std::pmr::vector<int64_t> all = Numbers(item_.query_begin, item_.query_end, memory_);
    found_(all, Search(all, {}));
  }

  // The same, told early how good rows have to be by those that the layer's last query found and, where queries are
  // many, by those of their neighbours.
  void RunSeeded(const FoundTokens& last) {
    std::pmr::vector<Witnesses> of_last(memory_);  // [heads]
    of_last.reserve(heads_.size());
    for (const int32_t head : heads_) of_last.push_back(WitnessesOf(head, last.OfHead(static_cast<size_t>(head))));
    const auto by_last = [&](size_t g, int64_t) -> const Witnesses& { return of_last[g]; };
    const int64_t count = item_.query_end - item_.query_begin;
    if (count < 2 * kFirstStride) {
      const std::pmr::vector<int64_t> all = Numbers(item_.query_begin, item_.query_end, memory_);
      found_(all, Search(all, FloorsBy(all, by_last)));
      return;
    }
    std::pmr::vector<std::optional<Witnesses>> of_query(static_cast<size_t>(count) * heads_.size(), memory_);
    const auto of = [&](size_t g, int64_t query) -> std::optional<Witnesses>& {
      return of_query[static_cast<size_t>(query - item_.query_begin) * heads_.size() + g];
    };
    // Sorts them, too: what is handed over sorted need not be sorted again.
    const auto keep = [&](absl::Span<const int64_t> queries, absl::Span<TopK> best) {
      std::pmr::vector<int64_t> tokens(memory_);
      for (size_t i = 0; i < best.size(); ++i) {
        const absl::Span<const Scored> rows = best[i].Sorted();
        tokens.resize(rows.size());
        std::transform(rows.begin(), rows.end(), tokens.begin(), [](const Scored& row) { return row.index; });
        const size_t g = i / queries.size();
        of(g, queries[i % queries.size()]).emplace(WitnessesOf(heads_[g], tokens));
      }
    };
    const std::pmr::vector<int64_t> first = EveryOther(0, kFirstStride);
    std::pmr::vector<TopK> best = Search(first, FloorsBy(first, by_last));
    keep(first, absl::MakeSpan(best));
    found_(first, best);
    for (int64_t stride = kFirstStride; stride > 1; stride /= 2) {
      const std::pmr::vector<int64_t> between = EveryOther(stride / 2, stride);
      const auto by_neighbour = [&](size_t g, int64_t query) -> const Witnesses& { return *of(g, query - stride / 2); };
      best = Search(between, FloorsBy(between, by_neighbour));
      if (stride > 2) keep(between, absl::MakeSpan(best));
      found_(between, best);
    }
  }

 private:
  // What some queries find in the item's rows: [heads][queries]. floors: the same, or empty.
  std::pmr::vector<TopK> Search(absl::Span<const int64_t> queries, absl::Span<const float> floors) {
    std::pmr::vector<TopK> top =
        TopsFor(*plan_.request, heads_, queries.size(), item_.scan_end - item_.scan_begin, memory_);
    PieceScan& scan = ThreadPieceScan();
    scan.Begin(plan_, item_.kv_head, heads_, queries, floors, top.data());
    int64_t counted = 0;
    for (const ScannedRows& rows : scanned_) {
      const int64_t begin = std::max(rows.row_begin, rows.row_begin + item_.scan_begin - counted);
      const int64_t end = std::min(rows.row_end, rows.row_begin + item_.scan_end - counted);
      counted += rows.row_end - rows.row_begin;
      if (begin < end) scan.Add(*rows.piece, begin, end);
    }
    scan.End();
    return top;
  }

  // The item's queries from number `begin` on, `stride` apart.
  std::pmr::vector<int64_t> EveryOther(int64_t begin, int64_t stride) const {
    std::pmr::vector<int64_t> numbers(memory_);
    numbers.reserve(static_cast<size_t>((item_.query_end - item_.query_begin) / stride + 1));
    for (int64_t query = item_.query_begin + begin; query < item_.query_end; query += stride) numbers.push_back(query);
    return numbers;
  }

  Witnesses WitnessesOf(int32_t head, absl::Span<const int64_t> tokens) const {
    return Witnesses(plan_, item_.kv_head, head, tokens, memory_);
  }

  // witnesses(place of the head, query)
  template <typename WitnessesFor>
  std::pmr::vector<float> FloorsBy(absl::Span<const int64_t> queries, const WitnessesFor& witnesses) const {
    std::pmr::vector<float> floors(memory_);
    floors.reserve(heads_.size() * queries.size());
    for (size_t g = 0; g < heads_.size(); ++g) {
      for (const int64_t query : queries) floors.push_back(witnesses(g, query).Floor(query));
    }
    return floors;
  }

  const RetrievePlan& plan_;
  const Item& item_;
  const absl::Span<const int32_t> heads_;
  const absl::Span<const ScannedRows> scanned_;
  const Found found_;
  std::pmr::memory_resource* const memory_;
};

}  // namespace

int64_t MemoryView::RowCount() const {
  int64_t count = 0;
  for (const VisibleRows& piece : rows) count += piece.row_end - piece.row_begin;
  return count;
}

const VisibleRows& MemoryView::Find(int64_t token) const {
  // Which half it is cannot be foreseen, so that nothing branches by it.
  size_t first = 0;
  for (size_t n = rows.size(); n > 1;) {
    const size_t half = n / 2;
    first += static_cast<size_t>(rows[first + half].token_begin() <= token) * half;
    n -= half;
  }
  return rows[first];
}

const VisibleRows* MemoryView::FindVisible(int64_t token) const {
  if (rows.empty()) return nullptr;
  const VisibleRows& piece = Find(token);
  return piece.token_begin() <= token && token < piece.token_end() ? &piece : nullptr;
}

MemoryView LookAt(const RetrieveRequest& request, const Sequence& sequence, std::pmr::memory_resource* memory) {
  MemoryView view(memory);
  if (sequence.snapshot != nullptr) {
    view.snapshot = *sequence.snapshot;
  } else {
    view.snapshot = sequence.memory->TakeSnapshot(memory);
  }
  view.layer = static_cast<size_t>(sequence.memory->card().FindLayer(request.layer.layer));
  const int64_t layer_end = view.snapshot.layer_ends[view.layer];
  view.end = sequence.memory_end < 0 ? layer_end : std::min(sequence.memory_end, layer_end);
  return view;
}

absl::StatusOr<MemoryView> ViewMemory(const RetrieveRequest& request, const Sequence& sequence, bool values,
                                      Executor& executor, std::pmr::memory_resource* memory) {
  MemoryView view = LookAt(request, sequence, memory);
  const MemoryState& state = *view.snapshot.state;
  view.rows.reserve(2 * (state.sealed.size() + 1));
  const int64_t layer_end = view.snapshot.layer_ends[view.layer];
  for (const SegmentView& sealed : state.sealed) {
    AddPieces(sealed.segment, sealed.first_token, sealed.rows, state, sequence.memory_begin, view.end, view.rows);
  }
  AddPieces(state.tail, state.tail_first, layer_end - state.tail_first, state, sequence.memory_begin, view.end,
            view.rows);
  // The candidates of an index are re-ranked by the exact keys of rows all over the memory.
  const bool whole_keys = !state.runs.empty();
  const int64_t visible = view.RowCount();
  int64_t wanted = 0;
  for (const HeadRule& head : request.heads) wanted += head.top_k * (sequence.query_end - sequence.query_begin);
  const auto bring_in = [&](VisibleRows& piece) -> absl::Status {
    const double share = static_cast<double>(piece.row_end - piece.row_begin) / static_cast<double>(visible);
    const auto expected = static_cast<int64_t>(share * static_cast<double>(wanted));
    const SearchNeeds needs{
        .whole_keys = whole_keys, .values = values, .single_keys = kKeysPerRow * expected, .single_values = expected};
    MNEME_ASSIGN_OR_RETURN(SearchRows found, piece.segment->ForSearch(view.layer, piece.row_end, needs));
    piece.keys = std::move(found.keys);
    piece.codes = std::move(found.codes);
    piece.values = std::move(found.values);
    if (state.has_positions) {
      MNEME_ASSIGN_OR_RETURN(piece.columns, piece.segment->Columns(piece.row_end));
    }
    return absl::OkStatus();
  };
  const auto missing = std::count_if(view.rows.begin(), view.rows.end(), [&](const VisibleRows& piece) {
    return !piece.segment->InMemory(view.layer, piece.row_end);
  });
  if (missing < 2) {
    for (VisibleRows& piece : view.rows) MNEME_RETURN_IF_ERROR(bring_in(piece));
  } else {
    MNEME_RETURN_IF_ERROR(
        ParallelForStatus(executor, view.rows.size(), [&](size_t i) { return bring_in(view.rows[i]); }));
  }
  // Pinned rows have what was brought in for their neighbours of the same segment.
  for (size_t i = 1; i < view.rows.size(); ++i) {
    VisibleRows& before = view.rows[i - 1];
    const VisibleRows& piece = view.rows[i];
    if (before.segment != piece.segment) continue;
    if (before.keys == nullptr) before.keys = piece.keys;
    if (before.values == nullptr) before.values = piece.values;
  }
  return view;
}

int64_t QueryPosition(const RetrieveRequest& request, const Sequence& sequence, int64_t view_end, int64_t query) {
  if (request.query_positions != nullptr) return request.query_positions[query];
  const int64_t queries = sequence.query_end - sequence.query_begin;
  const int64_t local = sequence.local_end - sequence.local_begin;
  return view_end + std::max<int64_t>(0, local - queries) + query - sequence.query_begin;
}

std::pmr::vector<TopK> NothingFound(const RetrieveRequest& request, const Sequence& sequence, const MemoryView& view,
                                    std::pmr::memory_resource* memory) {
  const int64_t queries = sequence.query_end - sequence.query_begin;
  const int64_t rows = view.RowCount();
  std::pmr::vector<TopK> top(memory);
  top.reserve(static_cast<size_t>(queries) * request.heads.size());
  for (int64_t query = 0; query < queries; ++query) {
    for (const HeadRule& rule : request.heads) top.emplace_back(rule.top_k, rows, memory);
  }
  return top;
}

absl::Status Retrieve(const RetrieveRequest& request, const Sequence& sequence, const MemoryView& view,
                      Executor& executor, absl::Span<TopK> result, const Beside* beside) {
  Scratch scratch;
  RetrievePlan plan(&scratch);
  plan.request = &request;
  plan.sequence = &sequence;
  plan.view = &view;
  plan.queries = sequence.query_end - sequence.query_begin;
  SharedStatus errors;
  plan.errors = &errors;
  const int64_t query_heads = request.layer.query_heads;
  const int64_t group = request.layer.group();
  bool decays = false;
  plan.heads.reserve(static_cast<size_t>(query_heads));
  for (int64_t head = 0; head < query_heads; ++head) {
    const HeadRule& rule = request.heads[static_cast<size_t>(head)];
    if (rule.top_k == 0) continue;
    plan.heads.push_back(static_cast<int32_t>(head));
    decays |= rule.decay > 0;
  }
  if (plan.heads.empty() || plan.queries == 0 || view.rows.empty()) return absl::OkStatus();
  plan.positions.reserve(static_cast<size_t>(plan.queries));
  for (int64_t query = 0; query < plan.queries; ++query) {
    plan.positions.push_back(QueryPosition(request, sequence, view.end, sequence.query_begin + query));
  }
  if (decays) {
    const auto [least, greatest] = std::minmax_element(plan.positions.begin(), plan.positions.end());
    // Pinned rows are exempt, and what is evicted behind them would make the table long.
    const auto first =
        std::find_if(view.rows.begin(), view.rows.end(), [](const auto& piece) { return !piece.pinned; });
    // Rows in one owner are numbered from its row 0, which may stand before the first visible one.
    const int64_t first_token = first == view.rows.end() ? view.rows.back().token_end() : first->first_token;
    const int64_t span = *greatest - *least + view.rows.back().token_end() - first_token;
    constexpr int64_t kGreatestSpan = int64_t{1} << 31;
    if (span > kGreatestSpan) {
      return absl::InvalidArgumentError(absl::StrCat(
          "query_positions: with decay, expected positions within 2^31 tokens of each other, got a span of ", span));
    }
    plan.penalties = sequence.memory->store().age_penalties().Get(*least - view.rows.back().token_end(),
                                                                  *greatest - first_token, request.decay_beyond);
  }
  PrepareVectors(plan, executor);

  // Work items. Exact kinds give the same result however this is cut.
  std::pmr::vector<VisibleRun> runs(&scratch);
  std::pmr::vector<ScannedRows> scanned(&scratch);
  scanned.reserve(view.rows.size());
  const bool by_index = request.policy != PositionPolicy::kClamped;
  if (by_index) {
    for (const auto& run : view.snapshot.state->runs) {
      const int64_t begin = std::max({run->first_token(), sequence.memory_begin, view.snapshot.state->pinned_tokens,
                                      view.snapshot.state->first_kept});
      const int64_t end = std::min(run->end(), view.end);
      if (begin < end) runs.push_back({run, begin, end});
    }
  }
  for (const VisibleRows& piece : view.rows) AddUncovered(piece, runs, scanned);
  int64_t scanned_rows = 0;
  for (const ScannedRows& rows : scanned) scanned_rows += rows.row_end - rows.row_begin;
  const int64_t query_tiles = (plan.queries + kQueriesPerItem - 1) / kQueriesPerItem;
  const auto width = static_cast<int64_t>(executor.Width());
  const int64_t cuts =
      std::max<int64_t>(1, (2 * width - 1) / std::max<int64_t>(1, request.layer.kv_heads * query_tiles) + 1);
  const int64_t rows_per_item = width == 1 ? std::numeric_limits<int64_t>::max() / 2
                                           : std::max(kMinRowsPerItem, (scanned_rows + cuts - 1) / cuts);
  std::pmr::vector<Item> items(&scratch);
  const int64_t scans = (scanned_rows + rows_per_item - 1) / rows_per_item;
  items.reserve(static_cast<size_t>(request.layer.kv_heads * query_tiles) * (static_cast<size_t>(scans) + runs.size()));
  for (int64_t kv_head = 0; kv_head < request.layer.kv_heads; ++kv_head) {
    for (int64_t query = 0; query < plan.queries; query += kQueriesPerItem) {
      const int64_t query_end = std::min(plan.queries, query + kQueriesPerItem);
      for (int64_t row = 0; row < scanned_rows; row += rows_per_item) {
        items.push_back({kv_head, query, query_end, row, std::min(scanned_rows, row + rows_per_item), nullptr});
      }
      for (const VisibleRun& run : runs) items.push_back({kv_head, query, query_end, 0, 0, &run});
    }
  }
  // Rows that an index answers for are not all looked at: what was found last may be better than what it will find, and
  // proves nothing. Nor do stored distances that change with the query (kClamped).
  LastFound& last_found = sequence.memory->last_found();
  const bool seeded = runs.empty() && request.policy != PositionPolicy::kClamped && scanned_rows >= kLeastSeededRows;
  FoundTokens seeds(&scratch);
  if (seeded) last_found.Get(view.layer, &seeds);

  Mutex mutex;  // of result
  const auto search = [&](const Item& item) {
    const auto first = std::lower_bound(plan.heads.begin(), plan.heads.end(), item.kv_head * group);
    const auto last = std::lower_bound(first, plan.heads.end(), (item.kv_head + 1) * group);
    const absl::Span<const int32_t> heads =
        absl::MakeConstSpan(plan.heads)
            .subspan(static_cast<size_t>(first - plan.heads.begin()), static_cast<size_t>(last - first));
    if (heads.empty()) return;
    Scratch own;
    const auto merge = [&](absl::Span<const int64_t> queries, absl::Span<const TopK> top) {
      MutexLock lock(&mutex);
      for (size_t g = 0; g < heads.size(); ++g) {
        for (size_t i = 0; i < queries.size(); ++i) {
          result[static_cast<size_t>(queries[i] * query_heads + heads[g])].Merge(top[g * queries.size() + i]);
        }
      }
    };
    if (item.run != nullptr) {
      const std::pmr::vector<int64_t> queries = Numbers(item.query_begin, item.query_end, &own);
      std::pmr::vector<TopK> top =
          TopsFor(request, heads, queries.size(), item.run->token_end - item.run->token_begin, &own);
      errors.Update(SearchRun(plan, *item.run, item.kv_head, heads, item.query_begin, item.query_end, top.data()));
      merge(queries, top);
      return;
    }
    ItemScan scan(plan, item, heads, scanned, merge, &own);
    if (seeded) {
      scan.RunSeeded(seeds);
    } else {
      scan.RunAll();
    }
  };
  const size_t others = beside != nullptr ? beside->tasks : 0;
  const MixedTasks tasks(items.size(), others, executor.Width());
  std::pmr::vector<std::atomic<size_t>> items_left(static_cast<size_t>(request.layer.kv_heads), &scratch);
  for (const Item& item : items) ++items_left[static_cast<size_t>(item.kv_head)];
  executor.ParallelFor(items.size() + others, [&](size_t number) {
    const MixedTasks::Task task = tasks.At(number);
    if (!task.is_scan) return beside->run(task.number);
    const Item& item = items[task.number];
    search(item);
    if (--items_left[static_cast<size_t>(item.kv_head)] == 0 && beside != nullptr) beside->found(item.kv_head);
  });
  const absl::Status status = errors.Get();
  if (status.ok() && seeded) {
    const absl::Span<TopK> of_last_query = result.last(static_cast<size_t>(query_heads));
    seeds.tokens.clear();
    seeds.ends.clear();
    for (TopK& best : of_last_query) {
      for (const Scored& row : best.Sorted()) seeds.tokens.push_back(row.index);
      seeds.ends.push_back(seeds.tokens.size());
    }
    last_found.Set(view.layer, seeds);
  }
  return status;
}

}  // namespace mneme
