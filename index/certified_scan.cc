#include "index/certified_scan.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <memory_resource>
#include <numeric>
#include <utility>
#include <vector>

#include "base/cpu.h"
#include "base/scratch.h"
#include "index/candidates.h"
#include "index/lead.h"
#include "index/query_codes.h"
#include "index/rotation.h"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace mneme {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kBlockRows = KeyCodes::kBlockRows;
constexpr int64_t kChunkRows = KeyCodes::kChunkRows;

// Fewer rows than this are looked at one by one: preparing the queries would take longer.
constexpr int64_t kLeastRows = 64;

// Exact keys are read by so many, while the next are on their way.
constexpr size_t kBatch = 16;

// Rows that codes tell nothing about are brought in and scanned by so many.
constexpr int64_t kPieceRows = 256;

// A scan keeps the buffers of so many queries for the next.
constexpr size_t kMostKept = 512;

// More than what products lose below f32's normal range.
constexpr float kTiny = 1e-36f;

std::atomic<const codes::Kernels*> kernels_for_testing{nullptr};

const codes::Kernels& CurrentKernels() {
  const codes::Kernels* wanted = kernels_for_testing.load(std::memory_order_relaxed);
  if (wanted != nullptr) return *wanted;
  static const codes::Kernels& best = []() -> const codes::Kernels& {
    if (BestCpuTarget() >= CpuTarget::kAvx512) {
      if (const codes::Kernels* found = codes::FindKernels("avx512vnni")) return *found;
    }
    if (BestCpuTarget() >= CpuTarget::kAvx2) {
      if (const codes::Kernels* found = codes::FindKernels("avx2")) return *found;
    }
    if (const codes::Kernels* found = codes::FindKernels("neon")) return *found;
    return codes::kPlainKernels;
  }();
  return best;
}

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

// A row's logit is likely to be above what its code says less this share of the room that its bounds take: they are for
// an error that points the worst way, one of any direction is about sqrt(dim) times smaller.
constexpr float kLikelyShare = 0.25f;

// One query of a scan.
struct CodedQuery {
  float norm = 0;
  float slack_weight = 0;  // of the mean's norm
  float slack = 0;         // in the base, for what f32 rounds away
  float floor = -kInfinity;
  float least_penalty = 0;  // in the present range or chunk
  Candidates candidates;
  TopK lead;  // what the blocks looked at first reach in all likelihood
};

// Rows scanned by one Add.
struct Range {
  const KeyRows* keys;  // null: they come from `source`
  KeySource* source;
  const KeyCodes* codes;
  int64_t row_begin;
  int64_t row_end;
  int64_t first_token;
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
    kernels_ = &CurrentKernels();
    counts_ = ScanCounts();
    ranges_.clear();
    rankings_.clear();
    status_ = absl::OkStatus();
    prepared_ = leading_ = false;
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
      if (!prepared_) Prepare(key_codes.coded_dim());
      ScanRange();
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
    for (int64_t i = 0; i < count_ && status_.ok(); ++i) {
      if (!Coded(i).candidates.few()) Thin(i);
      LookAt(i);
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
  // The least dot product that is worth a look in the last range.
  float Gate(int64_t i) {
    return DotGate(RankingOf(i, ranges_.size() - 1), Coded(i).least_penalty,
                   std::max(Threshold(i), Coded(i).candidates.assumed()));
  }

  // Rotates and codes the queries.
  void Prepare(int64_t coded_dim) {
    prepared_ = true;
    coded_dim_ = coded_dim;
    const auto n = static_cast<size_t>(count_);
    turned_.resize(static_cast<size_t>(dim_));
    values_.resize(n * static_cast<size_t>(coded_dim * kernels_->copies));
    lanes_.resize((n + codes::kLanes - 1) / codes::kLanes * codes::kLanes * static_cast<size_t>(dim_));
    bases_.resize(lanes_.size() / static_cast<size_t>(dim_));
    value_row_.resize(static_cast<size_t>(coded_dim));
    queries_.resize(n);
    for (int64_t i = 0; i < count_; ++i) {
      const float* vector = vectors_ + i * dim_;
      float* turned = turned_.data();
      std::copy_n(vector, dim_, turned);
      Rotate(turned, dim_);
      const codes::QueryCode code = codes::EncodeQuery(turned, dim_, *kernels_, value_row_.data());
      codes::Pack(*kernels_, value_row_.data(), i, count_, coded_dim, values_.data());
      float* const lane = lanes_.data() + i / codes::kLanes * codes::kLanes * dim_ + i % codes::kLanes;
      double squares = 0;
      for (int64_t d = 0; d < dim_; ++d) {
        lane[d * codes::kLanes] = vector[d];
        squares += static_cast<double>(vector[d]) * vector[d];
      }
      // What f32 may round away between the codes and the bound, and in the exact dot product itself, relative to
      // |query| · |key|: a unit in the last place for each term and some for the rest.
      const auto rounding = static_cast<float>(dim_ + 64) * 0x1p-23f;
      CodedQuery& coded = Coded(i);
      coded.norm = static_cast<float>(std::sqrt(squares) * 1.0001) + kTiny;
      coded.slack_weight = coded.norm * rounding;
      codes::Query& query = queries_[static_cast<size_t>(i)];
      query.start = -codes::kZeroCode * code.sum;
      query.step = code.step;
      query.inverse_step = code.step > 0 ? 1 / code.step : kInfinity;
      query.error_weight = coded.norm * (1 + rounding);
      query.norm_weight = static_cast<float>(std::sqrt(code.error2) * 1.0001) + coded.norm * rounding;
    }
  }

  // All queries over the last range.
  void ScanRange() {
    const Range& range = ranges_.back();
    for (int64_t i = 0; i < count_; ++i) {
      Coded(i).least_penalty = 0;
      queries_[static_cast<size_t>(i)].gate = Gate(i);
    }
    const Lead lead = LookAhead(range);
    for (int64_t row = range.row_begin; row < range.row_end;) {
      const int64_t chunk = row / kChunkRows;
      const int64_t chunk_end = std::min(range.row_end, (chunk + 1) * kChunkRows);
      EnterChunk(row, chunk_end);
      const int64_t blocks_end = (chunk_end + kBlockRows - 1) / kBlockRows;
      int64_t block = row / kBlockRows;
      if (const int64_t seen = lead.BlockOf(chunk); seen >= 0) {
        ScanBlocks(block, seen, 0);
        block = seen + 1;
      }
      ScanBlocks(block, blocks_end, 0);
      row = chunk_end;
    }
  }

  // Looks at some blocks first, for a threshold to begin with, if there is none and there are enough.
  Lead LookAhead(const Range& range) {
    Lead lead(range.row_begin, range.row_end);
    if (!assume_) return Lead();
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t k = top_[i].k();
      if (!lead.Serves(k) || Coded(i).candidates.assumed() > -kInfinity) return Lead();
      Coded(i).lead.Reset(lead.Rank(k));
    }
    const auto place = [&](int64_t i) {
      int64_t contiguous;
      return reinterpret_cast<intptr_t>(range.codes->Blocks(lead.Block(i) * kBlockRows, &contiguous));
    };
    leading_ = true;
    for (int64_t i = 0; i < lead.size(); ++i) {
      const int64_t block = lead.Block(i);
      const int64_t chunk_row = block * kBlockRows / kChunkRows * kChunkRows;
      EnterChunk(chunk_row, chunk_row + kChunkRows);
      ScanBlocks(block, block + 1, place(std::min(i + 2, lead.size() - 1)) - place(i));
    }
    leading_ = false;
    return lead;
  }

  // ahead: see codes::Kernels.
  void ScanBlocks(int64_t block, int64_t blocks_end, int64_t ahead) {
    while (block < blocks_end) {
      int64_t contiguous;
      const char* blocks = ranges_.back().codes->Blocks(block * kBlockRows, &contiguous);
      const int64_t n = std::min(contiguous, blocks_end - block);
      kernels_->scan(blocks, n, ahead, block * kBlockRows, coded_dim_, values_.data(), queries_.data(), count_,
                     &Impl::Sink, this);
      block += n;
    }
  }

  // What depends on the chunk: the part of the dot products that its mean makes, and the least penalty.
  void EnterChunk(int64_t row, int64_t chunk_end) {
    const KeyCodes& codes = *ranges_.back().codes;
    const float* mean = codes.Mean(row);
    const float mean_norm = codes.MeanNorm(row);
    if (chunk_end < ranges_.back().row_end) {
      const auto* next = reinterpret_cast<const char*>(codes.Mean(chunk_end));
      for (size_t byte = 0; byte < codes.mean_bytes(); byte += 64) __builtin_prefetch(next + byte);
    }
    for (int64_t i = 0; i < count_; i += codes::kLanes) {
      kernels_->dots(lanes_.data() + i * dim_, mean, dim_, bases_.data() + i);
    }
    for (int64_t i = 0; i < count_; ++i) {
      codes::Query& query = queries_[static_cast<size_t>(i)];
      CodedQuery& coded = Coded(i);
      coded.slack = coded.slack_weight * mean_norm + kTiny;
      query.base = bases_[static_cast<size_t>(i)] + coded.slack;
      const Ranking& ranking = RankingOf(i, ranges_.size() - 1);
      if (ranking.decay != 0) {
        coded.least_penalty = *std::min_element(ranking.row_penalty + row, ranking.row_penalty + chunk_end);
        query.gate = Gate(i);
      }
    }
  }

  static void Sink(void* context, int64_t number, codes::Query& query, int64_t row, const codes::Header& header,
                   const int32_t* sums, uint32_t rows) {
    static_cast<Impl*>(context)->Take(number, query, row, header, sums, rows);
  }

  void Take(int64_t number, codes::Query& query, int64_t row, const codes::Header& header, const int32_t* sums,
            uint32_t rows) {
    CodedQuery& coded = Coded(number);
    Candidates& candidates = coded.candidates;
    const Ranking& ranking = RankingOf(number, ranges_.size() - 1);
    const Range& range = ranges_.back();
    const float threshold = std::max(Threshold(number), candidates.assumed());
    float best = -kInfinity;
    for (; rows != 0; rows &= rows - 1) {
      const int r = std::countr_zero(rows);
      const int64_t at = row + r;
      if (at < range.row_begin || at >= range.row_end) continue;
      const codes::Reach reach = codes::ReachOf(query, header, r, sums[r]);
      const float likely = reach.middle - 2 * coded.slack - reach.room * kLikelyShare;
      Candidate candidate{at, static_cast<int32_t>(ranges_.size()) - 1, ranking.Logit(likely, at),
                          ranking.LogitUpTo(reach.middle + reach.room, at)};
      // The gate may have risen since.
      if (candidate.most < threshold) continue;
      // NaN bounds nothing.
      if (candidate.likely != candidate.likely) candidate.likely = -kInfinity;
      if (candidate.most != candidate.most) candidate.most = kInfinity;
      candidates.Add(candidate);
      best = std::max(best, candidate.likely);
    }
    if (leading_) {
      coded.lead.Push(best, row);
      if (coded.lead.threshold() > candidates.assumed()) {
        candidates.Assume(coded.lead.threshold());
        query.gate = Gate(number);
      }
    }
    if (!candidates.full()) return;
    Thin(number);
    if (candidates.crowded()) LookAt(number);
    query.gate = Gate(number);
  }

  void Thin(int64_t i) { Coded(i).candidates.Thin(Threshold(i)); }

  // Ranks the candidates of one query by their exact keys.
  void LookAt(int64_t i) {
    Candidates& candidates = Coded(i).candidates;
    const absl::Span<const int32_t> order = candidates.BestFirst();
    const size_t row_bytes = RowBytes(dtype_, dim_);
    const auto fetch = [&](size_t begin) {
      const float threshold = Threshold(i);
      for (const int32_t number : order.subspan(std::min(begin, order.size()), kBatch)) {
        const Candidate row = candidates[static_cast<size_t>(number)];
        if (row.most < threshold) continue;
        const Range& range = ranges_[static_cast<size_t>(row.range)];
        if (range.keys == nullptr) {
          range.source->WillRead(absl::MakeConstSpan(&row.row, 1));
          continue;
        }
        for (size_t byte = 0; byte < row_bytes; byte += 64) __builtin_prefetch(range.keys->Row(row.row) + byte);
      }
    };
    fetch(0);
    for (size_t first = 0; first < order.size() && status_.ok(); first += kBatch) {
      fetch(first + kBatch);
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
  bool prepared_ = false;
  bool leading_ = false;
  std::vector<float> turned_;
  std::vector<int8_t> value_row_;
  std::vector<int8_t> values_;
  std::vector<float> lanes_;  // the queries [dim][kLanes], group after group
  std::vector<float> bases_;  // their dot products with a chunk's mean
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
  return CurrentKernels().name;
}

namespace codes {

const Kernels* FindKernels(absl::string_view name) {
  if (name == kPlainKernels.name) return &kPlainKernels;
#if defined(__x86_64__)
  if (name == kAvx2Kernels.name && CpuHas(CpuTarget::kAvx2)) return &kAvx2Kernels;
  if (name == kAvx512VnniKernels.name && CpuHas(CpuTarget::kAvx512) && __builtin_cpu_supports("avx512vnni") != 0) {
    return &kAvx512VnniKernels;
  }
#endif
#if defined(__aarch64__) && defined(__linux__)
  if (name == kNeonKernels.name && (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0) return &kNeonKernels;
#endif
  return nullptr;
}

void UseKernelsForTesting(const Kernels* kernels) {
  kernels_for_testing.store(kernels);
}

}  // namespace codes
}  // namespace mneme
