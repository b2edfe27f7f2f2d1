// SPDX-License-Identifier: Apache-2.0
#include "index/scan/certified_scan.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory_resource>
#include <numeric>
#include <utility>
#include <vector>

#include "base/prefetch.h"
#include "base/scratch.h"
#include "index/scan/candidates.h"
#include "index/scan/chunk_bases.h"
#include "index/scan/code_kernel.h"
#include "index/scan/lead.h"
#include "index/scan/query_codes.h"
#include "index/scan/rotation.h"

namespace mneme {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kBlockRows = KeyCodes::kBlockRows;
constexpr int64_t kChunkRows = KeyCodes::kChunkRows;

// Fewer rows than this are looked at one by one: preparing the queries would take longer.
constexpr int64_t kLeastRows = 64;

// Exact keys are read by so many, while the next batches are on their way.
constexpr size_t kBatch = 16;
constexpr size_t kBatchesAhead = 2;

// Rows that codes tell nothing about are brought in and scanned by so many.
constexpr int64_t kPieceRows = 256;

// A scan keeps the buffers of so many queries for the next.
constexpr size_t kMostKept = 512;

// More than what products lose below f32's normal range.
constexpr float kTiny = 1e-36f;

// The least dot product with which a row of at least `least_penalty` can reach `threshold`; scale > 0.
float DotGate(const Ranking& ranking, float least_penalty, float threshold) {
  const double gate = ranking.LeastScaledDot(threshold, least_penalty) / static_cast<double>(ranking.scale);
  // An infinite gate stays: taking a share of it off would make it NaN.
  return static_cast<float>(std::isinf(gate) ? gate : gate - 1e-6 * std::fabs(gate));
}

// Whether codes can prove anything about this ranking: logits must rise with dot products.
bool Provable(const Ranking& ranking) {
  return ranking.scale > 0 && std::isfinite(ranking.scale) && std::isfinite(ranking.addend) && ranking.decay >= 0 &&
         std::isfinite(ranking.decay);
}

// The lead ends after so many blocks if fewer than one in kTrialShare of their rows could not be ruled out: what was
// known from the start is good enough then, and the rest of the lead would take longer than it spares.
constexpr int64_t kTrialBlocks = 8;
constexpr int64_t kTrialShare = 8;

// A row's logit is likely to be above what its code says less this share of the room that its bounds take: they are for
// an error that points the worst way, one of any direction is about sqrt(dim) times smaller.
constexpr float kLikelyShare = 0.25f;

// One query of a scan.
struct CodedQuery {
  float floor = -kInfinity;
  float least_penalty = 0;  // in the present range or chunk
  Candidates candidates;
  TopK lead;  // what the blocks looked at first reach in all likelihood
};

// Rows of one Add that have codes.
struct Range {
  const KeyRows* keys;  // null: they come from `source`
  KeySource* source;
  const KeyCodes* codes;
  int64_t row_begin;
  int64_t row_end;
  int64_t first_token;
  int64_t number = 0;  // of its chunk 0, whole chunks of all ranges counted through

  // Its whole chunks.
  int64_t FirstWhole() const { return (row_begin + kChunkRows - 1) / kChunkRows; }
  int64_t EndWhole() const { return std::max(FirstWhole(), row_end / kChunkRows); }
};

}  // namespace

class CertifiedScan::Impl {
 public:
  explicit Impl(bool assume) : assume_(assume) {}

  void Begin(const float* queries, int64_t count, int64_t dim, const float* floors, TopK* top) {
    vectors_ = queries;
    count_ = count;
    dim_ = dim;
    top_ = top;
    kernels_ = &codes::CurrentKernels();
    counts_ = ScanCounts();
    ranges_.clear();
    rankings_.clear();
    status_ = absl::OkStatus();
    // Those that this scan does not need keep their candidates' room for one that will.
    coded_.resize(std::max(static_cast<size_t>(count), std::min(coded_.size(), kMostKept)));
    for (int64_t i = 0; i < count; ++i) {
      CodedQuery& coded = Coded(i);
      coded.floor = floors != nullptr ? floors[i] : -kInfinity;
      coded.candidates.Reset(top[i].k(), assume_);
    }
  }

  // keys: null if they are to be read from `source`.
  void Add(const KeyRows* keys, KeySource* source, const KeyCodes& key_codes, int64_t row_begin, int64_t row_end,
           int64_t first_token, const Ranking* rankings) {
    if (row_begin >= row_end || count_ <= 0 || !status_.ok()) return;
    dtype_ = keys != nullptr ? keys->dtype() : source->dtype();
    int64_t coded_end = std::min(row_end, key_codes.rows());
    if (coded_end - row_begin < kLeastRows || !std::all_of(rankings, rankings + count_, Provable)) {
      coded_end = row_begin;
    }
    if (coded_end > row_begin) {
      ranges_.push_back({keys, source, &key_codes, row_begin, coded_end, first_token});
      rankings_.insert(rankings_.end(), rankings, rankings + count_);
    }
    if (keys != nullptr) {
      ScanTopK(*keys, coded_end, row_end, first_token, vectors_, count_, rankings, top_);
    } else {
      ScanSource(*source, coded_end, row_end, first_token, rankings);
    }
    counts_.by_code += count_ * (coded_end - row_begin);
    counts_.by_key += count_ * (row_end - coded_end);
  }

  absl::StatusOr<ScanCounts> End() {
    if (!status_.ok()) return status_;
    if (ranges_.empty()) return counts_;
    ScanRanges();
    // While the keys of one query are ranked, the next one's are on their way.
    absl::Span<const int32_t> order = Announce(0);
    for (int64_t i = 0; i < count_ && status_.ok(); ++i) {
      const absl::Span<const int32_t> next = i + 1 < count_ ? Announce(i + 1) : absl::Span<const int32_t>();
      LookAt(i, order);
      order = next;
      // Rows were passed over that might reach no more than was assumed: right if the k best did.
      if (status_.ok() && Coded(i).candidates.assumed() > Threshold(i)) Repeat(i);
    }
    if (!status_.ok()) return status_;
    return counts_;
  }

 private:
  CodedQuery& Coded(int64_t i) { return coded_[static_cast<size_t>(i)]; }
  const Ranking& RankingOf(int64_t i, size_t range) const {
    return rankings_[range * static_cast<size_t>(count_) + static_cast<size_t>(i)];
  }
  // A logit that the k-th best row is known to reach.
  float Threshold(int64_t i) { return std::max(top_[i].threshold(), Coded(i).floor); }
  // The least dot product that is worth a look in the present range.
  float Gate(int64_t i) {
    return DotGate(RankingOf(i, range_), Coded(i).least_penalty, std::max(Threshold(i), Coded(i).candidates.assumed()));
  }

  // Rotates and codes the queries.
  void Prepare(int64_t coded_dim) {
    coded_dim_ = coded_dim;
    const auto n = static_cast<size_t>(count_);
    turned_.resize(static_cast<size_t>(dim_));
    values_.resize(n * static_cast<size_t>(coded_dim * kernels_->copies));
    bases_.Begin(*kernels_, count_, dim_);
    value_row_.resize(static_cast<size_t>(coded_dim));
    queries_.resize(n);
    for (int64_t i = 0; i < count_; ++i) {
      const float* vector = vectors_ + i * dim_;
      float* turned = turned_.data();
      std::copy_n(vector, dim_, turned);
      Rotate(turned, dim_);
      const codes::QueryCode code = codes::EncodeQuery(turned, dim_, *kernels_, value_row_.data());
      codes::Pack(*kernels_, value_row_.data(), i, count_, coded_dim, values_.data());
      double squares = 0;
      for (int64_t d = 0; d < dim_; ++d) squares += static_cast<double>(vector[d]) * vector[d];
      // What f32 may round away between the codes and the bound, and in the exact dot product itself, relative to
      // |query| · |key|: a unit in the last place for each term and some for the rest.
      const auto rounding = static_cast<float>(dim_ + 64) * 0x1p-23f;
      const float norm = static_cast<float>(std::sqrt(squares) * 1.0001) + kTiny;
      bases_.Set(i, vector, norm * rounding);
      codes::Query& query = queries_[static_cast<size_t>(i)];
      query.start = -codes::kZeroCode * code.sum;
      query.step = code.step;
      query.inverse_step = code.step > 0 ? 1 / code.step : kInfinity;
      query.error_weight = norm * (1 + rounding);
      query.norm_weight = static_cast<float>(std::sqrt(code.error2) * 1.0001) + norm * rounding;
    }
  }

  // All queries over all ranges.
  void ScanRanges() {
    Prepare(ranges_.front().codes->coded_dim());
    int64_t chunks = 0;
    for (Range& range : ranges_) {
      range.number = chunks - range.FirstWhole();
      chunks += range.EndWhole() - range.FirstWhole();
    }
    if (assume_) LookAhead(Lead(chunks));
    for (size_t range = 0; range < ranges_.size(); ++range) {
      Enter(range);
      ScanRange();
    }
  }

  void Enter(size_t range) {
    range_ = range;
    decays_ = false;
    for (int64_t i = 0; i < count_; ++i) {
      Coded(i).least_penalty = 0;
      queries_[static_cast<size_t>(i)].gate = Gate(i);
      decays_ |= RankingOf(i, range).decay != 0;
    }
  }

  // All queries over the present range.
  void ScanRange() {
    const Range& range = ranges_[range_];
    // With decay, gates change from chunk to chunk.
    const int64_t most = decays_ ? 1 : ChunkBases::kChunks;
    const int64_t chunks_end = (range.row_end + kChunkRows - 1) / kChunkRows;
    const auto chunks_from = [&](int64_t chunk, ChunkBases::Chunk* chunks) {
      const int64_t n = std::clamp<int64_t>(chunks_end - chunk, 0, most);
      for (int64_t i = 0; i < n; ++i) chunks[i] = {range.codes, (chunk + i) * kChunkRows};
      return absl::MakeConstSpan(chunks, static_cast<size_t>(n));
    };
    for (int64_t chunk = range.row_begin / kChunkRows; chunk < chunks_end; chunk += most) {
      ChunkBases::Chunk now[ChunkBases::kChunks], next[ChunkBases::kChunks];
      const auto n = std::min(most, chunks_end - chunk);
      bases_.Compute(chunks_from(chunk, now), chunks_from(chunk + most, next));
      const int64_t row = std::max(range.row_begin, chunk * kChunkRows);
      const int64_t row_end = std::min(range.row_end, (chunk + n) * kChunkRows);
      if (decays_) SetGates(row, row_end);
      ScanBlocks(row / kBlockRows, (row_end + kBlockRows - 1) / kBlockRows, bases_.Of(0), 0, &Sink<&Impl::Take>);
    }
  }

  // Assumes thresholds by what the blocks of `lead` reach, if there are enough of them. Their rows come again with all
  // others: kept now, while nothing is known, most would be kept in vain.
  void LookAhead(const Lead& lead) {
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t k = top_[i].k();
      if (!lead.Serves(k)) return;
      Coded(i).lead.Reset(lead.Rank(k));
    }
    struct Block {
      size_t range;
      int64_t number;
      const char* data;
    };
    // The i-th one; of the blocks before, the last one's range is `range`.
    const auto find = [&](int64_t i, size_t range) {
      i = std::min(i, lead.size() - 1);
      const int64_t chunk = lead.Chunk(i);
      while (ranges_[range].number + ranges_[range].EndWhole() <= chunk) ++range;
      const int64_t number = (chunk - ranges_[range].number) * codes::kChunkBlocks + Lead::Place(i);
      int64_t contiguous;
      return Block{range, number, ranges_[range].codes->Blocks(number * kBlockRows, &contiguous)};
    };
    const auto chunks_from = [&](int64_t i, size_t range, ChunkBases::Chunk* places) {
      const int64_t n = std::clamp<int64_t>(lead.size() - i, 0, ChunkBases::kChunks);
      for (int64_t j = 0; j < n; ++j) {
        const Block block = find(i + j, range);
        places[j] = {ranges_[block.range].codes, block.number * kBlockRows};
      }
      return absl::MakeConstSpan(places, static_cast<size_t>(n));
    };
    // So many blocks ahead of its turn one is asked for.
    constexpr int64_t kAhead = 4;
    lead_rows_ = 0;
    Enter(0);
    for (int64_t i = 0; i < lead.size(); ++i) {
      if (i == kTrialBlocks && lead_rows_ * kTrialShare < i * kBlockRows * count_) break;
      const Block block = find(i, range_);
      if (block.range != range_) Enter(block.range);
      if (i % ChunkBases::kChunks == 0) {
        ChunkBases::Chunk now[ChunkBases::kChunks], next[ChunkBases::kChunks];
        bases_.Compute(chunks_from(i, range_, now), chunks_from(i + ChunkBases::kChunks, range_, next));
      }
      const int64_t chunk_row = block.number * kBlockRows / kChunkRows * kChunkRows;
      if (decays_) SetGates(chunk_row, chunk_row + kChunkRows);
      ScanBlocks(block.number, block.number + 1, bases_.Of(i % ChunkBases::kChunks),
                 reinterpret_cast<intptr_t>(find(i + kAhead, range_).data) - reinterpret_cast<intptr_t>(block.data),
                 &Sink<&Impl::Judge>);
    }
  }

  // Gets rows that could not be ruled out: see codes::Sink.
  using Receive = void (Impl::*)(int64_t number, codes::Query& query, float base, int64_t row,
                                 const codes::Header& header, const int32_t* sums, uint32_t rows);
  template <Receive kReceive>
  static void Sink(void* context, int64_t number, codes::Query& query, float base, int64_t row,
                   const codes::Header& header, const int32_t* sums, uint32_t rows) {
    (static_cast<Impl*>(context)->*kReceive)(number, query, base, row, header, sums, rows);
  }

  // bases, ahead: see codes::Span.
  void ScanBlocks(int64_t block, int64_t blocks_end, const float* bases, int64_t ahead, codes::Sink sink) {
    while (block < blocks_end) {
      int64_t contiguous;
      const char* blocks = ranges_[range_].codes->Blocks(block * kBlockRows, &contiguous);
      const int64_t n = std::min(contiguous, blocks_end - block);
      const codes::Span span{blocks, n, block * kBlockRows, ahead, bases, bases_.stride()};
      kernels_->scan(span, coded_dim_, values_.data(), queries_.data(), count_, sink, this);
      const int64_t chunks = (block + n) / codes::kChunkBlocks - block / codes::kChunkBlocks;
      bases += chunks * bases_.stride();
      block += n;
    }
  }

  // Of queries whose rankings decay: by the least penalty of rows [row, row_end).
  void SetGates(int64_t row, int64_t row_end) {
    for (int64_t i = 0; i < count_; ++i) {
      const Ranking& ranking = RankingOf(i, range_);
      if (ranking.decay == 0) continue;
      Coded(i).least_penalty = *std::min_element(ranking.row_penalty + row, ranking.row_penalty + row_end);
      queries_[static_cast<size_t>(i)].gate = Gate(i);
    }
  }

  // A row's logit in all likelihood.
  float Likely(const Ranking& ranking, const codes::Reach& reach, float slack, int64_t row) const {
    const float logit = ranking.Logit(reach.middle - 2 * slack - reach.room * kLikelyShare, row);
    // NaN bounds nothing.
    return logit != logit ? -kInfinity : logit;
  }

  // Rows of a block of the lead: the best of them counts.
  void Judge(int64_t number, codes::Query& query, float base, int64_t row, const codes::Header& header,
             const int32_t* sums, uint32_t rows) {
    CodedQuery& coded = Coded(number);
    const Ranking& ranking = RankingOf(number, range_);
    const float slack = bases_.Slack(number, {ranges_[range_].codes, row});
    lead_rows_ += std::popcount(rows);
    float best = -kInfinity;
    for (; rows != 0; rows &= rows - 1) {
      const int r = std::countr_zero(rows);
      best = std::max(best, Likely(ranking, codes::ReachOf(query, base, header, r, sums[r]), slack, row + r));
    }
    coded.lead.Push(best, row);
    if (!(coded.lead.threshold() > coded.candidates.assumed())) return;
    coded.candidates.Assume(coded.lead.threshold());
    query.gate = Gate(number);
  }

  void Take(int64_t number, codes::Query& query, float base, int64_t row, const codes::Header& header,
            const int32_t* sums, uint32_t rows) {
    CodedQuery& coded = Coded(number);
    Candidates& candidates = coded.candidates;
    const Ranking& ranking = RankingOf(number, range_);
    const Range& range = ranges_[range_];
    const float threshold = std::max(Threshold(number), candidates.assumed());
    const float slack = bases_.Slack(number, {range.codes, row});
    for (; rows != 0; rows &= rows - 1) {
      const int r = std::countr_zero(rows);
      const int64_t at = row + r;
      if (at < range.row_begin || at >= range.row_end) continue;
      const codes::Reach reach = codes::ReachOf(query, base, header, r, sums[r]);
      float most = ranking.LogitUpTo(reach.middle + reach.room, at);
      // The gate may have risen since.
      if (most < threshold) continue;
      if (most != most) most = kInfinity;
      candidates.Add({at, static_cast<int32_t>(range_), Likely(ranking, reach, slack, at), most});
    }
    if (!candidates.full()) return;
    Thin(number);
    if (candidates.crowded()) LookAt(number, candidates.BestFirst());
    query.gate = Gate(number);
  }

  void Thin(int64_t i) { Coded(i).candidates.Thin(Threshold(i)); }

  // The order in which the candidates of one query will be looked at; asks for the keys of the first.
  absl::Span<const int32_t> Announce(int64_t i) {
    if (!Coded(i).candidates.few()) Thin(i);
    const absl::Span<const int32_t> order = Coded(i).candidates.BestFirst();
    for (size_t batch = 0; batch < kBatchesAhead; ++batch) WillRead(i, order, batch * kBatch);
    return order;
  }

  // Asks for the keys of the batch that begins with number `begin` of `order`.
  void WillRead(int64_t i, absl::Span<const int32_t> order, size_t begin) {
    const Candidates& candidates = Coded(i).candidates;
    const size_t row_bytes = RowBytes(dtype_, dim_);
    const float threshold = Threshold(i);
    for (const int32_t number : order.subspan(std::min(begin, order.size()), kBatch)) {
      const Candidate row = candidates[static_cast<size_t>(number)];
      if (row.most < threshold) continue;
      const Range& range = ranges_[static_cast<size_t>(row.range)];
      if (range.keys == nullptr) {
        range.source->WillRead(absl::MakeConstSpan(&row.row, 1));
        continue;
      }
      PrefetchBytes(range.keys->Row(row.row), row_bytes);
    }
  }

  // Ranks the candidates of one query by their exact keys, in an order that BestFirst gave.
  void LookAt(int64_t i, absl::Span<const int32_t> order) {
    Candidates& candidates = Coded(i).candidates;
    for (size_t first = 0; first < order.size() && status_.ok(); first += kBatch) {
      WillRead(i, order, first + kBatchesAhead * kBatch);
      const char* keys[kBatch];
      Candidate rows[kBatch];
      size_t n = 0;
      const float threshold = Threshold(i);
      for (const int32_t number : order.subspan(first, kBatch)) {
        const Candidate row = candidates[static_cast<size_t>(number)];
        if (row.most < threshold) continue;
        const KeyRows* const in_memory = ranges_[static_cast<size_t>(row.range)].keys;
        keys[n] = in_memory != nullptr ? in_memory->Row(row.row) : nullptr;
        rows[n++] = row;
      }
      if (n == 0) continue;
      ReadMissing(absl::MakeConstSpan(rows, n), keys);
      if (!status_.ok()) break;
      float dots[kBatch];
      DotKeys(dtype_, dim_, absl::MakeConstSpan(keys, n), vectors_ + i * dim_, dots);
      for (size_t j = 0; j < n; ++j) {
        const auto range = static_cast<size_t>(rows[j].range);
        top_[i].Push(RankingOf(i, range).Logit(dots[j], rows[j].row), ranges_[range].first_token + rows[j].row);
      }
      counts_.looked_at += static_cast<int64_t>(n);
    }
    candidates.Clear();
  }

  // Reads the keys that are null, those of a batch.
  void ReadMissing(absl::Span<const Candidate> rows, const char** keys) {
    size_t missing[kBatch];
    size_t n = 0;
    for (size_t j = 0; j < rows.size(); ++j) {
      if (keys[j] == nullptr) missing[n++] = j;
    }
    if (n == 0) return;
    std::sort(missing, missing + n, [&](size_t a, size_t b) {
      return std::pair(rows[a].range, rows[a].row) < std::pair(rows[b].range, rows[b].row);
    });
    const size_t row_bytes = RowBytes(dtype_, dim_);
    key_bytes_.resize(n * row_bytes);
    int64_t numbers[kBatch];
    for (size_t first = 0, end; first < n && status_.ok(); first = end) {
      const int32_t range = rows[missing[first]].range;
      for (end = first; end < n && rows[missing[end]].range == range; ++end) {
        numbers[end] = rows[missing[end]].row;
        keys[missing[end]] = key_bytes_.data() + end * row_bytes;
      }
      status_ = ranges_[static_cast<size_t>(range)].source->Read(
          absl::MakeConstSpan(numbers + first, end - first),
          absl::MakeSpan(key_bytes_).subspan(first * row_bytes, (end - first) * row_bytes));
    }
  }

  // ScanTopK over keys that are not in memory.
  void ScanSource(KeySource& source, int64_t row_begin, int64_t row_end, int64_t first_token, const Ranking* rankings) {
    std::vector<int64_t> numbers;
    std::vector<Ranking> shifted(rankings, rankings + count_);
    for (int64_t begin = row_begin; begin < row_end && status_.ok(); begin += kPieceRows) {
      numbers.resize(static_cast<size_t>(std::min(kPieceRows, row_end - begin)));
      std::iota(numbers.begin(), numbers.end(), begin);
      key_bytes_.resize(numbers.size() * source.row_bytes());
      status_ = source.Read(numbers, absl::MakeSpan(key_bytes_));
      if (!status_.ok()) return;
      const auto n = static_cast<int64_t>(numbers.size());
      KeyRows piece(source.dtype(), dim_);
      piece.Append(key_bytes_.data(), n);
      for (int64_t i = 0; i < count_; ++i) {
        const float* const penalty = rankings[i].row_penalty;
        shifted[static_cast<size_t>(i)].row_penalty = penalty != nullptr ? penalty + begin : nullptr;
      }
      ScanTopK(piece, 0, n, first_token + begin, vectors_, count_, shifted.data(), top_);
    }
  }

  // Scans for query i again, assuming nothing but what is known by now.
  void Repeat(int64_t i) {
    if (repeat_ == nullptr) repeat_ = std::make_unique<Impl>(false);
    int64_t rows = 0;
    for (const Range& range : ranges_) rows += range.row_end - range.row_begin;
    Scratch scratch;
    TopK best(top_[i].k(), rows, &scratch);
    const float floor = Threshold(i);
    repeat_->Begin(vectors_ + i * dim_, 1, dim_, &floor, &best);
    for (size_t r = 0; r < ranges_.size(); ++r) {
      const Range& range = ranges_[r];
      repeat_->Add(range.keys, range.source, *range.codes, range.row_begin, range.row_end, range.first_token,
                   &RankingOf(i, r));
      counts_.repeated += range.row_end - range.row_begin;
    }
    const absl::StatusOr<ScanCounts> counts = repeat_->End();
    if (!counts.ok()) {
      status_ = counts.status();
      return;
    }
    counts_.looked_at += counts->looked_at;
    // What is in already comes again.
    const absl::Span<const Scored> before = top_[i].Sorted();
    std::pmr::vector<int64_t> in(&scratch);
    in.reserve(before.size());
    for (const Scored& row : before) in.push_back(row.index);
    for (const Scored& row : best.Sorted()) {
      if (std::find(in.begin(), in.end(), row.index) == in.end()) top_[i].Push(row.score, row.index);
    }
  }

  const float* vectors_ = nullptr;
  int64_t count_ = 0;
  int64_t dim_ = 0;
  int64_t coded_dim_ = 0;
  TopK* top_ = nullptr;
  const codes::Kernels* kernels_ = nullptr;
  ScanCounts counts_;
  int64_t lead_rows_ = 0;  // that blocks of the lead did not rule out, of all queries
  size_t range_ = 0;       // the present one
  bool decays_ = false;    // some ranking of it does
  std::vector<float> turned_;
  std::vector<int8_t> value_row_;
  std::vector<int8_t> values_;
  ChunkBases bases_;  // of the present chunks
  std::vector<codes::Query> queries_;
  std::vector<CodedQuery> coded_;
  DType dtype_ = DType::kF32;  // of all ranges
  std::vector<char> key_bytes_;
  absl::Status status_;  // of the KeySources

  std::vector<Range> ranges_;      // whose rows are among the candidates
  std::vector<Ranking> rankings_;  // [ranges][queries]

  const bool assume_;
  std::unique_ptr<Impl> repeat_;  // assumes nothing
};

CertifiedScan::CertifiedScan() : impl_(std::make_unique<Impl>(true)) {}
CertifiedScan::~CertifiedScan() = default;

void CertifiedScan::Begin(const float* queries, int64_t count, int64_t dim, const float* floors, TopK* top) {
  impl_->Begin(queries, count, dim, floors, top);
}

void CertifiedScan::Add(const KeyRows& keys, const KeyCodes& key_codes, int64_t row_begin, int64_t row_end,
                        int64_t first_token, const Ranking* rankings) {
  impl_->Add(&keys, nullptr, key_codes, row_begin, row_end, first_token, rankings);
}

void CertifiedScan::Add(KeySource& keys, const KeyCodes& key_codes, int64_t row_begin, int64_t row_end,
                        int64_t first_token, const Ranking* rankings) {
  impl_->Add(nullptr, &keys, key_codes, row_begin, row_end, first_token, rankings);
}

absl::StatusOr<ScanCounts> CertifiedScan::End() {
  return impl_->End();
}

void ScanCertified(const KeyRows& keys, const KeyCodes& key_codes, int64_t row_begin, int64_t row_end,
                   int64_t first_token, const float* queries, int64_t count, const Ranking* rankings,
                   const float* floors, TopK* top, ScanCounts* counts) {
  CertifiedScan scan;
  scan.Begin(queries, count, keys.dim(), floors, top);
  scan.Add(keys, key_codes, row_begin, row_end, first_token, rankings);
  *counts = *scan.End();  // fails only where keys are read from elsewhere
}

absl::string_view CodeKernelName() {
  return codes::CurrentKernels().name;
}

}  // namespace mneme
