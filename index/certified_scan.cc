#include "index/certified_scan.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "base/cpu.h"
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

// Exact keys are asked for when a row is found to need them, and read when this many have come.
constexpr int kPending = 16;

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

// Sum in an order that compilers turn into vectors.
float Dot(const float* a, const float* b, int64_t n) {
  constexpr int64_t kSums = 16;
  float sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (int64_t j = 0; j < kSums; ++j) sums[j] += a[i + j] * b[i + j];
  }
  for (; i < n; ++i) sums[0] += a[i] * b[i];
  float sum = 0;
  for (const float part : sums) sum += part;
  return sum;
}

// Whether codes can prove anything about this ranking: logits must rise with dot products.
bool Provable(const Ranking& ranking) {
  return ranking.scale > 0 && std::isfinite(ranking.scale) && std::isfinite(ranking.addend) && ranking.decay >= 0 &&
         std::isfinite(ranking.decay);
}

// A row whose exact key is to be read, and all that its logit needs.
struct Pending {
  const char* key;
  int64_t token;
  float most;  // what the code allows its dot product to be
  int range;   // the Add that found it
  float addend;
  float decay;
  float penalty;
};

// One query of a scan.
struct CodedQuery {
  float norm = 0;
  float slack_weight = 0;  // of the mean's norm
  float floor = -kInfinity;
  float dot_gate = -kInfinity;  // for the present range and penalties
  float least_penalty = 0;
  float scale = 0, soft_cap = 0;
  int pending = 0;
  Pending rows[kPending];
};

}  // namespace

class CertifiedScan::Impl {
 public:
  void Begin(const float* queries, int64_t count, int64_t dim, const float* floors, TopK* top) {
    vectors_ = queries;
    count_ = count;
    dim_ = dim;
    top_ = top;
    kernels_ = &CurrentKernels();
    counts_ = ScanCounts();
    range_ = 0;
    prepared_ = false;
    coded_.resize(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      CodedQuery& coded = Coded(i);
      coded.floor = floors != nullptr ? floors[i] : -kInfinity;
      coded.pending = 0;
    }
  }

  void Add(const KeyRows& keys, const KeyCodes& key_codes, int64_t row_begin, int64_t row_end, int64_t first_token,
           const Ranking* rankings) {
    if (row_begin >= row_end || count_ <= 0) return;
    int64_t coded_end = std::min(row_end, key_codes.rows());
    if (coded_end - row_begin < kLeastRows || !std::all_of(rankings, rankings + count_, Provable)) {
      coded_end = row_begin;
    }
    if (coded_end > row_begin) {
      keys_ = &keys;
      codes_ = &key_codes;
      row_begin_ = row_begin;
      row_end_ = coded_end;
      first_token_ = first_token;
      rankings_ = rankings;
      ++range_;
      dtype_ = keys.dtype();
      if (!prepared_) Prepare();
      ScanRange();
    }
    ScanTopK(keys, coded_end, row_end, first_token, vectors_, count_, rankings, top_);
    counts_.by_code += count_ * (coded_end - row_begin);
    counts_.by_key += count_ * (row_end - coded_end);
  }

  ScanCounts End() {
    for (int64_t i = 0; i < count_; ++i) LookAtPending(i);
    return counts_;
  }

 private:
  CodedQuery& Coded(int64_t i) { return coded_[static_cast<size_t>(i)]; }
  float Threshold(int64_t i) { return std::max(top_[i].threshold(), Coded(i).floor); }

  // Rotates and codes the queries.
  void Prepare() {
    prepared_ = true;
    const int64_t coded_dim = codes_->coded_dim();
    const auto n = static_cast<size_t>(count_);
    turned_.resize(static_cast<size_t>(dim_));
    values_.assign(n * static_cast<size_t>(coded_dim), 0);
    queries_.resize(n);
    for (int64_t i = 0; i < count_; ++i) {
      const float* vector = vectors_ + i * dim_;
      float* turned = turned_.data();
      std::copy_n(vector, dim_, turned);
      Rotate(turned, dim_);
      float most = 0;
      for (int64_t d = 0; d < dim_; ++d) most = std::max(most, std::fabs(turned[d]));
      const auto greatest = static_cast<float>(kernels_->greatest_value);
      float step = most / greatest;
      float inverse = 1.0f / step;
      if (!(step > 0) || !std::isfinite(inverse)) step = inverse = 0;  // all zero, or too small to matter
      int32_t sum = 0;
      double squares = 0, error = 0;
      for (int64_t d = 0; d < dim_; ++d) {
        constexpr float kShift = 0x1.8p23f;  // adding it rounds to a whole number
        const float whole = std::min(std::max((turned[d] * inverse + kShift) - kShift, -greatest), greatest);
        const auto value = static_cast<int8_t>(whole);
        values_[static_cast<size_t>(codes::ValueAt(i, d, coded_dim, count_, kernels_->group))] = value;
        sum += value;
        const double rest = turned[d] - static_cast<double>(whole) * step;
        error += rest * rest;
        squares += static_cast<double>(vector[d]) * vector[d];
      }
      // What f32 may round away between the codes and the bound, and in the exact dot product itself, relative to
      // |query| · |key|: a unit in the last place for each term and some for the rest.
      const auto rounding = static_cast<float>(dim_ + 64) * 0x1p-23f;
      CodedQuery& coded = Coded(i);
      coded.norm = static_cast<float>(std::sqrt(squares) * 1.0001) + kTiny;
      coded.slack_weight = coded.norm * rounding;
      codes::Query& query = queries_[static_cast<size_t>(i)];
      query.start = -codes::kZeroCode * sum;
      query.step = step;
      query.inverse_step = step > 0 ? 1 / step : kInfinity;
      query.error_weight = coded.norm * (1 + rounding);
      query.norm_weight = static_cast<float>(std::sqrt(error) * 1.0001) + coded.norm * rounding;
    }
  }

  void ScanRange() {
    for (int64_t i = 0; i < count_; ++i) {
      CodedQuery& coded = Coded(i);
      coded.scale = rankings_[i].scale;
      coded.soft_cap = rankings_[i].soft_cap;
      coded.least_penalty = 0;
      coded.dot_gate = DotGate(rankings_[i], 0, Threshold(i));
    }
    for (int64_t row = row_begin_; row < row_end_;) {
      const int64_t chunk_end = std::min(row_end_, (row / kChunkRows + 1) * kChunkRows);
      EnterChunk(row, chunk_end);
      const int64_t blocks_end = (chunk_end + kBlockRows - 1) / kBlockRows;
      for (int64_t block = row / kBlockRows; block < blocks_end;) {
        int64_t contiguous;
        const char* blocks = codes_->Blocks(block * kBlockRows, &contiguous);
        const int64_t n = std::min(contiguous, blocks_end - block);
        kernels_->scan(blocks, n, block * kBlockRows, codes_->coded_dim(), values_.data(), queries_.data(),
                       count_, &Impl::Sink, this);
        block += n;
      }
      row = chunk_end;
    }
  }

  // What depends on the chunk: the part of the dot products that its mean makes, and the least penalty.
  void EnterChunk(int64_t row, int64_t chunk_end) {
    const float* mean = codes_->Mean(row);
    const float mean_norm = codes_->MeanNorm(row);
    for (int64_t i = 0; i < count_; ++i) {
      codes::Query& query = queries_[static_cast<size_t>(i)];
      CodedQuery& coded = Coded(i);
      query.base = Dot(vectors_ + i * dim_, mean, dim_) + coded.slack_weight * mean_norm + kTiny;
      if (rankings_[i].decay != 0) {
        coded.least_penalty = *std::min_element(rankings_[i].row_penalty + row, rankings_[i].row_penalty + chunk_end);
        coded.dot_gate = DotGate(rankings_[i], coded.least_penalty, Threshold(i));
      }
      query.gate = coded.dot_gate;
    }
  }

  static void Sink(void* context, int64_t number, codes::Query& query, int64_t row, const float* most, uint32_t rows) {
    static_cast<Impl*>(context)->Take(number, query, row, most, rows);
  }

  void Take(int64_t number, codes::Query& query, int64_t row, const float* most, uint32_t rows) {
    CodedQuery& coded = Coded(number);
    const Ranking& ranking = rankings_[number];
    for (; rows != 0; rows &= rows - 1) {
      const int lane = std::countr_zero(rows);
      const int64_t at = row + lane;
      if (at < row_begin_ || at >= row_end_) continue;
      const char* key = keys_->Row(at);
      for (size_t byte = 0; byte < keys_->row_bytes(); byte += 64) __builtin_prefetch(key + byte);
      coded.rows[coded.pending] = {key,          first_token_ + at,
                                   most[lane],   range_,
                                   ranking.addend, ranking.decay,
                                   ranking.decay != 0 ? ranking.row_penalty[at] : 0.0f};
      if (++coded.pending == kPending) {
        LookAtPending(number);
        coded.dot_gate = DotGate(ranking, coded.least_penalty, Threshold(number));
        query.gate = coded.dot_gate;
      }
    }
  }

  // Ranks the waiting rows of one query by their exact keys.
  void LookAtPending(int64_t i) {
    CodedQuery& coded = Coded(i);
    int n = 0;
    const char* keys[kPending];
    for (int j = 0; j < coded.pending; ++j) {
      const Pending& row = coded.rows[j];
      // The gate may have risen since; a decaying one belongs to another chunk by now.
      if (row.range == range_ && row.decay == 0 && row.most < coded.dot_gate) continue;
      keys[n] = row.key;
      coded.rows[n++] = row;
    }
    coded.pending = 0;
    if (n == 0) return;
    float dots[kPending];
    DotKeys(dtype_, dim_, absl::MakeConstSpan(keys, static_cast<size_t>(n)), vectors_ + i * dim_, dots);
    for (int j = 0; j < n; ++j) {
      const Pending& row = coded.rows[j];
      const Ranking ranking{coded.scale, coded.soft_cap, row.addend, row.decay, &row.penalty};
      top_[i].Push(ranking.Logit(dots[j], 0), row.token);
    }
    counts_.looked_at += n;
  }

  const float* vectors_ = nullptr;
  int64_t count_ = 0;
  int64_t dim_ = 0;
  TopK* top_ = nullptr;
  const codes::Kernels* kernels_ = nullptr;
  ScanCounts counts_;
  int range_ = 0;
  bool prepared_ = false;
  std::vector<float> turned_;
  std::vector<int8_t> values_;
  std::vector<codes::Query> queries_;
  std::vector<CodedQuery> coded_;

  // the present range
  const KeyRows* keys_ = nullptr;
  const KeyCodes* codes_ = nullptr;
  DType dtype_ = DType::kF32;  // of all ranges
  int64_t row_begin_ = 0, row_end_ = 0, first_token_ = 0;
  const Ranking* rankings_ = nullptr;
};

CertifiedScan::CertifiedScan() : impl_(std::make_unique<Impl>()) {}
CertifiedScan::~CertifiedScan() = default;

void CertifiedScan::Begin(const float* queries, int64_t count, int64_t dim, const float* floors, TopK* top) {
  impl_->Begin(queries, count, dim, floors, top);
}

void CertifiedScan::Add(const KeyRows& keys, const KeyCodes& key_codes, int64_t row_begin, int64_t row_end,
                        int64_t first_token, const Ranking* rankings) {
  impl_->Add(keys, key_codes, row_begin, row_end, first_token, rankings);
}

ScanCounts CertifiedScan::End() { return impl_->End(); }

void ScanCertified(const KeyRows& keys, const KeyCodes& key_codes, int64_t row_begin, int64_t row_end,
                   int64_t first_token, const float* queries, int64_t count, const Ranking* rankings,
                   const float* floors, TopK* top, ScanCounts* counts) {
  CertifiedScan scan;
  scan.Begin(queries, count, keys.dim(), floors, top);
  scan.Add(keys, key_codes, row_begin, row_end, first_token, rankings);
  *counts = scan.End();
}

absl::string_view CodeKernelName() { return CurrentKernels().name; }

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

void UseKernelsForTesting(const Kernels* kernels) { kernels_for_testing.store(kernels); }

}  // namespace codes
}  // namespace mneme
