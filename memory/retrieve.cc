#include "memory/retrieve.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

#include "attention/rotary.h"
#include "base/mutex.h"
#include "base/status.h"
#include "memory/age_penalties.h"

namespace mneme {
namespace {

// A work item scans at least this many rows: below, handing it out costs more than it saves.
constexpr int64_t kMinRowsPerItem = 2048;
// Query tokens of one work item; enough to use each load of a key many times.
constexpr int64_t kQueriesPerItem = 64;
// Smaller owners are scanned by their keys: codes would cost more than they spare.
constexpr int64_t kLeastCodedRows = 512;
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
               int64_t begin, int64_t end, std::vector<VisibleRows>& rows) {
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

// `piece` without the tokens of `runs` (ascending), added to `rest`.
void AddUncovered(const VisibleRows& piece, const std::vector<VisibleRun>& runs, std::vector<VisibleRows>& rest) {
  int64_t token = piece.token_begin();
  const auto add = [&](int64_t end) {
    if (token >= end) return;
    VisibleRows part = piece;
    part.row_begin = token - piece.first_token;
    part.row_end = end - piece.first_token;
    rest.push_back(std::move(part));
  };
  for (const VisibleRun& run : runs) {
    if (run.token_end <= token || run.token_begin >= piece.token_end()) continue;
    add(std::min(run.token_begin, piece.token_end()));
    token = std::max(token, std::min(run.token_end, piece.token_end()));
  }
  add(piece.token_end());
}

// Everything the work items of one sequence share.
struct Plan {
  const RetrieveRequest* request;
  const Sequence* sequence;
  const MemoryView* view;
  int64_t queries;                // of the sequence
  std::vector<int32_t> heads;     // query heads that have a memory
  std::vector<int64_t> positions;  // [queries]
  std::vector<float> vectors;     // [query_heads][queries][key_dim] as the keys want them
  std::vector<float> plain;       // kClamped: the same, not rotated
  std::shared_ptr<const AgePenalties> penalties;

  const float* Vector(int64_t head, int64_t query) const {
    return vectors.data() + (head * queries + query) * request->layer.key_dim;
  }
  const float* Plain(int64_t head, int64_t query) const {
    return plain.data() + (head * queries + query) * request->layer.key_dim;
  }
  Ranking RankingOf(int64_t head, int64_t query, const VisibleRows& rows) const {
    const HeadRule& rule = request->heads[static_cast<size_t>(head)];
    Ranking ranking;
    ranking.scale = rule.scale;
    ranking.soft_cap = request->layer.soft_cap;
    if (rows.pinned) return ranking;
    ranking.addend = request->joint ? rule.memory_bias : 0.0f;
    if (rule.decay > 0) {
      ranking.decay = rule.decay;
      ranking.row_penalty = penalties->ForRows(positions[static_cast<size_t>(query)], rows.first_token);
    }
    return ranking;
  }
};

void PrepareVector(const Plan& plan, int64_t head, int64_t query, float* vector, float* plain,
                   const RotaryTurn& head_turn) {
  const RetrieveRequest& request = *plan.request;
  const auto dim = static_cast<size_t>(request.layer.key_dim);
  const RowTensor& tensor = request.memory_query;
  ConvertToF32(tensor.dtype, tensor.Row(plan.sequence->query_begin + query, head), vector, dim);
  if (request.normalise_query) {
    double squares = 1e-6;
    for (size_t i = 0; i < dim; ++i) squares += static_cast<double>(vector[i]) * vector[i];
    const auto factor = static_cast<float>(1.0 / std::sqrt(squares));
    for (size_t i = 0; i < dim; ++i) vector[i] *= factor;
  }
  switch (request.policy) {
    case PositionPolicy::kAsStored: break;
    case PositionPolicy::kClamped:
      std::copy(vector, vector + dim, plain);
      head_turn.Apply(vector);
      break;
    case PositionPolicy::kFixedDistance: head_turn.Apply(vector); break;
    case PositionPolicy::kWindowStart:
      RotateQueryByDistance(
          request.layer.rotary,
          static_cast<double>(request.query_local_positions[plan.sequence->query_begin + query]), vector);
      break;
  }
}

void PrepareVectors(Plan& plan, Executor& executor) {
  const RetrieveRequest& request = *plan.request;
  const int64_t dim = request.layer.key_dim;
  plan.vectors.resize(static_cast<size_t>(request.layer.query_heads * plan.queries * dim));
  if (request.policy == PositionPolicy::kClamped) plan.plain.resize(plan.vectors.size());
  const auto prepare = [&](size_t i) {
    const int64_t head = plan.heads[i];
    RotaryTurn turn;
    if (request.policy == PositionPolicy::kFixedDistance || request.policy == PositionPolicy::kClamped) {
      turn = RotaryTurn::OfQueryByDistance(request.layer.rotary, request.heads[static_cast<size_t>(head)].distance);
    }
    for (int64_t query = 0; query < plan.queries; ++query) {
      const int64_t at = (head * plan.queries + query) * dim;
      PrepareVector(plan, head, query, plan.vectors.data() + at,
                    plan.plain.empty() ? nullptr : plan.plain.data() + at, turn);
    }
  };
  if (plan.queries >= 16) {
    executor.ParallelFor(plan.heads.size(), prepare);
  } else {
    for (size_t i = 0; i < plan.heads.size(); ++i) prepare(i);
  }
}

// Rows whose true distance decides their rotation, one by one (kClamped): those nearer than the head's distance. Rows
// at or beyond it go with the clamped query.
void ScoreClamped(const Plan& plan, const VisibleRows& rows, int64_t row_begin, int64_t row_end, int64_t kv_head,
                  int64_t head, int64_t query, TopK& top) {
  const LayerCard& layer = plan.request->layer;
  const HeadRule& rule = plan.request->heads[static_cast<size_t>(head)];
  const auto dim = static_cast<size_t>(layer.key_dim);
  const KeyRows& keys = *rows.keys->heads[static_cast<size_t>(kv_head)];
  const Ranking ranking = plan.RankingOf(head, query, rows);
  std::vector<float> key(dim), turned(dim);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t position = rows.columns != nullptr ? rows.columns->Position(row) : rows.first_token + row;
    const auto distance = static_cast<double>(plan.positions[static_cast<size_t>(query)] - position);
    const float* vector = plan.Vector(head, query);
    if (distance < static_cast<double>(rule.distance)) {
      std::copy_n(plan.Plain(head, query), dim, turned.data());
      RotateQueryByDistance(layer.rotary, distance, turned.data());
      vector = turned.data();
    }
    float dot;
    DotRows(keys, absl::MakeConstSpan(&row, 1), vector, &dot);
    top.Push(ranking.Logit(dot, row), rows.first_token + row);
  }
}

// Scans pieces of the memory for queries [query_begin, query_end) of some heads of one group. An object keeps its buffers
// for the next time.
class PieceScan {
 public:
  // top: [heads][queries]. floors: the same, or empty.
  void Begin(const Plan& plan, int64_t kv_head, absl::Span<const int32_t> heads, int64_t query_begin,
             int64_t query_end, absl::Span<const float> floors, TopK* top) {
    plan_ = &plan;
    kv_head_ = kv_head;
    heads_ = heads;
    query_begin_ = query_begin;
    query_end_ = query_end;
    top_ = top;
    const int64_t dim = plan.request->layer.key_dim;
    const int64_t queries = query_end - query_begin;
    const auto count = static_cast<int64_t>(heads.size()) * queries;
    vectors_.resize(static_cast<size_t>(count * dim));
    rankings_.resize(static_cast<size_t>(count));
    for (size_t g = 0; g < heads.size(); ++g) {
      std::copy_n(plan.Vector(heads[g], query_begin), queries * dim,
                  vectors_.data() + static_cast<int64_t>(g) * queries * dim);
    }
    scan_.Begin(vectors_.data(), count, dim, floors.empty() ? nullptr : floors.data(), top);
  }

  // Rows [row_begin, row_end) of `rows`.
  void Add(const VisibleRows& rows, int64_t row_begin, int64_t row_end) {
    const int64_t far_end = plan_->request->policy == PositionPolicy::kClamped ? AddNear(rows, row_begin, row_end) : row_end;
    if (far_end <= row_begin) return;
    const int64_t queries = query_end_ - query_begin_;
    for (size_t g = 0; g < heads_.size(); ++g) {
      for (int64_t query = 0; query < queries; ++query) {
        rankings_[g * static_cast<size_t>(queries) + static_cast<size_t>(query)] =
            plan_->RankingOf(heads_[g], query_begin_ + query, rows);
      }
    }
    const KeyRows& keys = *rows.keys->heads[static_cast<size_t>(kv_head_)];
    KeyCodes& coded = *rows.keys->codes[static_cast<size_t>(kv_head_)];
    if (keys.size() >= kLeastCodedRows) coded.Extend(keys);
    scan_.Add(keys, coded, row_begin, far_end, rows.first_token, rankings_.data());
  }

  void End() { plan_->sequence->memory->store().scan_counters().Add(scan_.End()); }

 private:
  // kClamped: scores rows that may be nearer than a head's distance one by one; returns where the others end.
  int64_t AddNear(const VisibleRows& rows, int64_t row_begin, int64_t row_end) {
    // Rows before far_end are beyond every query's and head's distance.
    int64_t far_end = row_begin;
    if (rows.columns == nullptr) {
      int64_t nearest_far = std::numeric_limits<int64_t>::max();
      for (const int32_t head : heads_) {
        const auto reach =
            static_cast<int64_t>(std::ceil(plan_->request->heads[static_cast<size_t>(head)].distance));
        for (int64_t query = query_begin_; query < query_end_; ++query) {
          nearest_far = std::min(nearest_far, plan_->positions[static_cast<size_t>(query)] - reach + 1);
        }
      }
      far_end = std::clamp(nearest_far - rows.first_token, row_begin, row_end);
    }
    const int64_t queries = query_end_ - query_begin_;
    for (size_t g = 0; g < heads_.size(); ++g) {
      for (int64_t query = 0; query < queries; ++query) {
        ScoreClamped(*plan_, rows, far_end, row_end, kv_head_, heads_[g], query_begin_ + query,
                     top_[static_cast<int64_t>(g) * queries + query]);
      }
    }
    return far_end;
  }

  const Plan* plan_ = nullptr;
  int64_t kv_head_ = 0;
  absl::Span<const int32_t> heads_;
  int64_t query_begin_ = 0, query_end_ = 0;
  TopK* top_ = nullptr;
  std::vector<float> vectors_;
  std::vector<Ranking> rankings_;
  CertifiedScan scan_;
};

// One a thread, so that searching allocates nothing once it has run.
PieceScan& ThreadPieceScan() {
  thread_local PieceScan scan;
  return scan;
}

// Candidates of one index, re-ranked by the exact keys.
absl::Status SearchRun(const Plan& plan, const VisibleRun& visible, int64_t kv_head, absl::Span<const int32_t> heads,
                       int64_t query_begin, int64_t query_end, TopK* top) {
  const RetrieveRequest& request = *plan.request;
  const MemoryView& view = *plan.view;
  const IndexRun& run = *visible.run;
  const int64_t queries = query_end - query_begin;
  int64_t wanted = 0;
  for (const int32_t head : heads) wanted = std::max(wanted, request.heads[static_cast<size_t>(head)].top_k);
  const int64_t seen = visible.token_end - visible.token_begin;
  // The more of the index is out of sight, the more must be asked for.
  const double widen = static_cast<double>(run.tokens()) / static_cast<double>(seen);
  const double asked = std::max<double>(kMinCandidates, kCandidatesPerRow * static_cast<double>(std::min(wanted, seen)));
  const auto fetch = static_cast<int64_t>(std::min<double>(asked * widen, static_cast<double>(run.tokens())));
  const auto scan = [&](absl::Span<const int32_t> which, int64_t begin_query, int64_t end_query, TopK* best) {
    PieceScan& pieces = ThreadPieceScan();
    pieces.Begin(plan, kv_head, which, begin_query, end_query, {}, best);
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
  std::vector<float> vectors;
  std::vector<int64_t> rows(static_cast<size_t>(queries * fetch));
  for (size_t g = 0; g < heads.size(); ++g) {
    vectors.assign(plan.Vector(heads[g], query_begin),
                   plan.Vector(heads[g], query_begin) + queries * request.layer.key_dim);
    MNEME_RETURN_IF_ERROR(index->Search(vectors.data(), queries, fetch, rows.data()));
    for (int64_t query = 0; query < queries; ++query) {
      TopK& best = top[static_cast<int64_t>(g) * queries + query];
      int64_t found = 0;
      for (int64_t i = 0; i < fetch; ++i) {
        const int64_t row = rows[static_cast<size_t>(query * fetch + i)];
        if (row < 0) continue;
        const int64_t token = run.first_token() + row;
        if (token < visible.token_begin || token >= visible.token_end) continue;
        ++found;
        const VisibleRows& owner = view.Find(token);
        const int64_t owner_row = token - owner.first_token;
        float dot;
        DotRows(*owner.keys->heads[static_cast<size_t>(kv_head)], absl::MakeConstSpan(&owner_row, 1),
                plan.Vector(heads[g], query_begin + query), &dot);
        best.Push(plan.RankingOf(heads[g], query_begin + query, owner).Logit(dot, owner_row), token);
      }
      if (found >= std::min(request.heads[static_cast<size_t>(heads[g])].top_k, seen)) continue;
      // Too few came back (lists probed in vain, most of the index evicted): the exact scan answers instead.
      best.Reset(best.k());
      scan(absl::MakeConstSpan(&heads[g], 1), query_begin + query, query_begin + query + 1, &best);
    }
  }
  return absl::OkStatus();
}

// For each head and query a logit that the worst of its k best is known to reach: that of the worst of what the last
// query found, if all of it can still be seen; else -infinity.
std::vector<float> Floors(const Plan& plan, const LastFound::Tokens& last, int64_t kv_head,
                          absl::Span<const int32_t> heads, int64_t query_begin, int64_t query_end) {
  const MemoryView& view = *plan.view;
  const RetrieveRequest& request = *plan.request;
  const int64_t queries = query_end - query_begin;
  std::vector<float> floors(heads.size() * static_cast<size_t>(queries), -std::numeric_limits<float>::infinity());
  std::vector<const VisibleRows*> owners;
  std::vector<const char*> keys;
  std::vector<float> dots;
  for (size_t g = 0; g < heads.size(); ++g) {
    const auto head = static_cast<size_t>(heads[g]);
    if (head >= last.size()) continue;
    const std::vector<int64_t>& tokens = last[head];
    if (static_cast<int64_t>(tokens.size()) != request.heads[head].top_k) continue;
    owners.clear();
    keys.clear();
    for (const int64_t token : tokens) {
      const VisibleRows* owner = view.FindVisible(token);
      if (owner == nullptr) break;
      owners.push_back(owner);
      keys.push_back(owner->keys->heads[static_cast<size_t>(kv_head)]->Row(token - owner->first_token));
    }
    if (keys.size() < tokens.size()) continue;
    dots.resize(keys.size());
    for (int64_t query = 0; query < queries; ++query) {
      DotKeys(owners.front()->keys->heads[static_cast<size_t>(kv_head)]->dtype(), request.layer.key_dim, keys,
              plan.Vector(heads[g], query_begin + query), dots.data());
      float worst = std::numeric_limits<float>::infinity();
      for (size_t i = 0; i < dots.size(); ++i) {
        const float logit = plan.RankingOf(heads[g], query_begin + query, *owners[i])
                                .Logit(dots[i], tokens[i] - owners[i]->first_token);
        // NaN never enters the k best.
        worst = logit < worst || logit != logit ? logit : worst;
        if (logit != logit) break;
      }
      if (worst == worst) floors[g * static_cast<size_t>(queries) + static_cast<size_t>(query)] = worst;
    }
  }
  return floors;
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

}  // namespace

const VisibleRows* MemoryView::FindVisible(int64_t token) const {
  const auto after = std::upper_bound(rows.begin(), rows.end(), token, [](int64_t value, const VisibleRows& piece) {
    return value < piece.token_begin();
  });
  if (after == rows.begin()) return nullptr;
  const VisibleRows& piece = *std::prev(after);
  return token < piece.token_end() ? &piece : nullptr;
}

const VisibleRows& MemoryView::Find(int64_t token) const {
  const auto after = std::upper_bound(rows.begin(), rows.end(), token, [](int64_t value, const VisibleRows& piece) {
    return value < piece.token_begin();
  });
  return *std::prev(after);
}

absl::StatusOr<MemoryView> ViewMemory(const Sequence& sequence, const LayerCard& layer, bool values) {
  MemoryView view;
  const Memory& memory = *sequence.memory;
  view.snapshot = sequence.snapshot != nullptr ? *sequence.snapshot : memory.TakeSnapshot();
  view.layer = static_cast<size_t>(memory.card().FindLayer(layer.layer));
  const MemoryState& state = *view.snapshot.state;
  const int64_t layer_end = view.snapshot.layer_ends[view.layer];
  view.end = sequence.memory_end < 0 ? layer_end : std::min(sequence.memory_end, layer_end);
  for (const SegmentView& sealed : state.sealed) {
    AddPieces(sealed.segment, sealed.first_token, sealed.rows, state, sequence.memory_begin, view.end, view.rows);
  }
  AddPieces(state.tail, state.tail_first, layer_end - state.tail_first, state, sequence.memory_begin, view.end,
            view.rows);
  for (VisibleRows& piece : view.rows) {
    MNEME_ASSIGN_OR_RETURN(piece.keys, piece.segment->Keys(view.layer, piece.row_end));
    if (values) {
      MNEME_ASSIGN_OR_RETURN(piece.values, piece.segment->Values(view.layer, piece.row_end));
    }
    if (state.has_positions) {
      MNEME_ASSIGN_OR_RETURN(piece.columns, piece.segment->Columns(piece.row_end));
    }
  }
  return view;
}

int64_t QueryPosition(const RetrieveRequest& request, const Sequence& sequence, const MemoryView& view, int64_t query) {
  if (request.query_positions != nullptr) return request.query_positions[query];
  const int64_t queries = sequence.query_end - sequence.query_begin;
  const int64_t local = sequence.local_end - sequence.local_begin;
  return view.end + std::max<int64_t>(0, local - queries) + query - sequence.query_begin;
}

absl::Status Retrieve(const RetrieveRequest& request, const Sequence& sequence, const MemoryView& view,
                      Executor& executor, std::vector<TopK>& result) {
  Plan plan{&request, &sequence, &view, sequence.query_end - sequence.query_begin, {}, {}, {}, {}, nullptr};
  const int64_t query_heads = request.layer.query_heads;
  const int64_t group = request.layer.group();
  bool decays = false;
  for (int64_t head = 0; head < query_heads; ++head) {
    const HeadRule& rule = request.heads[static_cast<size_t>(head)];
    for (int64_t query = 0; query < plan.queries; ++query) {
      result[static_cast<size_t>(query * query_heads + head)].Reset(rule.top_k);
    }
    if (rule.top_k == 0) continue;
    plan.heads.push_back(static_cast<int32_t>(head));
    decays |= rule.decay > 0;
  }
  if (plan.heads.empty() || plan.queries == 0 || view.rows.empty()) return absl::OkStatus();
  for (int64_t query = 0; query < plan.queries; ++query) {
    plan.positions.push_back(QueryPosition(request, sequence, view, sequence.query_begin + query));
  }
  if (decays) {
    const auto [least, greatest] = std::minmax_element(plan.positions.begin(), plan.positions.end());
    // Pinned rows are exempt, and what is evicted behind them would make the table long.
    const auto first = std::find_if(view.rows.begin(), view.rows.end(), [](const auto& piece) { return !piece.pinned; });
    // Rows in one owner are numbered from its row 0, which may stand before the first visible one.
    const int64_t first_token = first == view.rows.end() ? view.rows.back().token_end() : first->first_token;
    const int64_t span = *greatest - *least + view.rows.back().token_end() - first_token;
    constexpr int64_t kGreatestSpan = int64_t{1} << 31;
    if (span > kGreatestSpan) {
      return absl::InvalidArgumentError(absl::StrCat(
          "query_positions: with decay, expected positions within 2^31 tokens of each other, got a span of ", span));
    }
    plan.penalties = sequence.memory->store().age_penalties().Get(
        *least - view.rows.back().token_end(), *greatest - first_token, request.decay_beyond);
  }
  PrepareVectors(plan, executor);

  // Work items. Exact kinds give the same result however this is cut.
  std::vector<VisibleRun> runs;
  std::vector<VisibleRows> scanned;
  const bool by_index = request.policy != PositionPolicy::kClamped;
  if (by_index) {
    for (const auto& run : view.snapshot.state->runs) {
      const int64_t begin = std::max({run->first_token(), sequence.memory_begin,
                                      view.snapshot.state->pinned_tokens, view.snapshot.state->first_kept});
      const int64_t end = std::min(run->end(), view.end);
      if (begin < end) runs.push_back({run, begin, end});
    }
  }
  for (const VisibleRows& piece : view.rows) AddUncovered(piece, runs, scanned);
  int64_t scanned_rows = 0;
  for (const VisibleRows& piece : scanned) scanned_rows += piece.row_end - piece.row_begin;
  const int64_t query_tiles = (plan.queries + kQueriesPerItem - 1) / kQueriesPerItem;
  const auto width = static_cast<int64_t>(executor.Width());
  const int64_t cuts = std::max<int64_t>(1, (2 * width - 1) / std::max<int64_t>(1, request.layer.kv_heads * query_tiles) + 1);
  const int64_t rows_per_item =
      width == 1 ? std::numeric_limits<int64_t>::max() / 2 : std::max(kMinRowsPerItem, (scanned_rows + cuts - 1) / cuts);
  std::vector<Item> items;
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
  Memory& memory = *sequence.memory;
  const bool exact = runs.empty() && request.policy != PositionPolicy::kClamped;
  const std::shared_ptr<const LastFound::Tokens> last_found = exact ? memory.last_found().Get(view.layer) : nullptr;

  Mutex mutex;  // of result and status
  absl::Status status;
  executor.ParallelFor(items.size(), [&](size_t number) {
    const Item& item = items[number];
    const auto first = std::lower_bound(plan.heads.begin(), plan.heads.end(), item.kv_head * group);
    const auto last = std::lower_bound(first, plan.heads.end(), (item.kv_head + 1) * group);
    const absl::Span<const int32_t> heads = absl::MakeConstSpan(plan.heads).subspan(
        static_cast<size_t>(first - plan.heads.begin()), static_cast<size_t>(last - first));
    if (heads.empty()) return;
    const int64_t queries = item.query_end - item.query_begin;
    std::vector<TopK> top;
    top.reserve(heads.size() * static_cast<size_t>(queries));
    for (const int32_t head : heads) {
      for (int64_t i = 0; i < queries; ++i) top.emplace_back(request.heads[static_cast<size_t>(head)].top_k);
    }
    absl::Status own;
    if (item.run != nullptr) {
      own = SearchRun(plan, *item.run, item.kv_head, heads, item.query_begin, item.query_end, top.data());
    }
    if (item.run == nullptr) {
      std::vector<float> floors;
      if (last_found != nullptr) floors = Floors(plan, *last_found, item.kv_head, heads, item.query_begin, item.query_end);
      PieceScan& pieces = ThreadPieceScan();
      pieces.Begin(plan, item.kv_head, heads, item.query_begin, item.query_end, floors, top.data());
      int64_t counted = 0;
      for (const VisibleRows& piece : scanned) {
        const int64_t begin = std::max(piece.row_begin, piece.row_begin + item.scan_begin - counted);
        const int64_t end = std::min(piece.row_end, piece.row_begin + item.scan_end - counted);
        counted += piece.row_end - piece.row_begin;
        if (begin < end) pieces.Add(piece, begin, end);
      }
      pieces.End();
    }
    MutexLock lock(&mutex);
    if (!own.ok()) {
      status.Update(own);
      return;
    }
    for (size_t g = 0; g < heads.size(); ++g) {
      for (int64_t i = 0; i < queries; ++i) {
        result[static_cast<size_t>((item.query_begin + i) * query_heads + heads[g])].Merge(
            top[g * static_cast<size_t>(queries) + static_cast<size_t>(i)]);
      }
    }
  });
  if (status.ok() && exact) {
    auto found = std::make_shared<LastFound::Tokens>(static_cast<size_t>(query_heads));
    for (const int32_t head : plan.heads) {
      TopK& best = result[static_cast<size_t>((plan.queries - 1) * query_heads + head)];
      for (const Scored& row : best.Sorted()) (*found)[static_cast<size_t>(head)].push_back(row.index);
    }
    memory.last_found().Set(view.layer, std::move(found));
  }
  return status;
}

}  // namespace mneme
