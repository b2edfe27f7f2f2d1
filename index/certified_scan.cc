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

// The least dot product with which a row can have a logit of at least `threshold`, with room for every rounding on the
// way from the exact dot product to the logit; -infinity if none can be given.
float DotGate(const Ranking& ranking, float least_penalty, float threshold) {
  if (threshold == -kInfinity) return -kInfinity;
  const double scale = ranking.scale, cap = ranking.soft_cap;
  const double penalty = ranking.decay != 0 ? static_cast<double>(ranking.decay) * least_penalty : 0.0;
  double least = threshold - static_cast<double>(ranking.addend) + penalty;
  least -= 1e-6 * (std::fabs(threshold) + std::fabs(ranking.addend) + std::fabs(penalty));
  if (cap > 0) {
    const double ratio = least / cap - 1e-5 * (1 + std::fabs(least) / cap);
    if (ratio >= 1) return kInfinity;
    if (!(ratio > -1)) return -kInfinity;
    least = cap * std::atanh(ratio);
    least -= 1e-5 * std::fabs(least);
  }
  const double gate = least / scale;
  return static_cast<float>(gate - 1e-6 * std::fabs(gate));
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

// One query of a scan.
struct CodedQuery {
  float norm = 0;
  float slack_weight = 0;  // of the mean's norm
  float dot_gate = -kInfinity;
  float least_penalty = 0;
  float floor = -kInfinity;
  int pending = 0;
  int64_t rows[kPending];
  float most[kPending];
};

// The buffers of one thread, kept from call to call.
struct Workspace {
  std::vector<float> turned;
  std::vector<int8_t> values;
  std::vector<codes::Query> queries;
  std::vector<CodedQuery> coded;
};

class Scan {
 public:
  Scan(const KeyRows& keys, const KeyCodes& key_codes, int64_t row_begin, int64_t row_end, int64_t first_token,
       const float* queries, int64_t count, const Ranking* rankings, const float* floors, TopK* top,
       Workspace& workspace)
      : keys_(keys),
        codes_(key_codes),
        row_begin_(row_begin),
        row_end_(row_end),
        first_token_(first_token),
        vectors_(queries),
        count_(count),
        rankings_(rankings),
        top_(top),
        kernels_(CurrentKernels()),
        work_(workspace) {
    Prepare(floors);
  }

  // Returns how many pairs were looked at.
  int64_t Run() {
    for (int64_t row = row_begin_; row < row_end_;) {
      const int64_t chunk_end = std::min(row_end_, (row / kChunkRows + 1) * kChunkRows);
      EnterChunk(row, chunk_end);
      for (int64_t block = row / kBlockRows; block * kBlockRows < chunk_end;) {
        int64_t contiguous;
        const char* blocks = codes_.Blocks(block * kBlockRows, &contiguous);
        const int64_t blocks_end = (chunk_end + kBlockRows - 1) / kBlockRows;
        const int64_t n = std::min(contiguous, blocks_end - block);
        kernels_.scan(blocks, n, block * kBlockRows, codes_.coded_dim(), work_.queries.data(), count_, &Scan::Sink,
                      this);
        block += n;
      }
      row = chunk_end;
    }
    for (int64_t i = 0; i < count_; ++i) LookAtPending(i);
    return looked_at_;
  }

 private:
  // Rotates and codes the queries; what depends on the chunk comes with it.
  void Prepare(const float* floors) {
    const int64_t dim = keys_.dim(), coded_dim = codes_.coded_dim();
    const auto n = static_cast<size_t>(count_);
    work_.turned.resize(static_cast<size_t>(dim));
    work_.values.assign(n * static_cast<size_t>(coded_dim), 0);
    work_.queries.resize(n);
    work_.coded.resize(n);
    for (int64_t i = 0; i < count_; ++i) {
      const float* vector = vectors_ + i * dim;
      float* turned = work_.turned.data();
      std::copy_n(vector, dim, turned);
      Rotate(turned, dim);
      float most = 0;
      double squares = 0;
      for (int64_t d = 0; d < dim; ++d) most = std::max(most, std::fabs(turned[d]));
      for (int64_t d = 0; d < dim; ++d) squares += static_cast<double>(vector[d]) * vector[d];
      const auto greatest = static_cast<float>(kernels_.greatest_value);
      float step = most / greatest;
      float inverse = 1.0f / step;
      if (!(step > 0) || !std::isfinite(inverse)) step = inverse = 0;  // all zero, or too small to matter
      int8_t* values = work_.values.data() + i * coded_dim;
      int32_t sum = 0;
      double error = 0;
      for (int64_t d = 0; d < dim; ++d) {
        const float whole = std::clamp(std::nearbyint(turned[d] * inverse), -greatest, greatest);
        values[d] = static_cast<int8_t>(whole);
        sum += values[d];
        const double rest = turned[d] - static_cast<double>(whole) * step;
        error += rest * rest;
      }
      // What f32 may round away between the codes and the bound, and in the exact dot product itself, relative to
      // |query| · |key|: a unit in the last place for each term and some for the rest.
      const auto rounding = static_cast<float>(dim + 64) * 0x1p-23f;
      codes::Query& query = work_.queries[static_cast<size_t>(i)];
      CodedQuery& coded = work_.coded[static_cast<size_t>(i)];
      coded.norm = static_cast<float>(std::sqrt(squares) * 1.0001) + kTiny;
      coded.slack_weight = coded.norm * rounding;
      coded.floor = floors != nullptr ? floors[i] : -kInfinity;
      coded.pending = 0;
      coded.least_penalty = 0;
      query.values = values;
      query.start = -codes::kZeroCode * sum;
      query.step = step;
      query.error_weight = coded.norm * (1 + rounding);
      query.norm_weight = static_cast<float>(std::sqrt(error) * 1.0001) + coded.norm * rounding;
      coded.dot_gate = DotGate(rankings_[i], 0, Threshold(i));
    }
  }

  float Threshold(int64_t i) const { return std::max(top_[i].threshold(), work_.coded[static_cast<size_t>(i)].floor); }

  void EnterChunk(int64_t row, int64_t chunk_end) {
    const float* mean = codes_.Mean(row);
    const float mean_norm = codes_.MeanNorm(row);
    for (int64_t i = 0; i < count_; ++i) {
      codes::Query& query = work_.queries[static_cast<size_t>(i)];
      CodedQuery& coded = work_.coded[static_cast<size_t>(i)];
      query.base = Dot(vectors_ + i * keys_.dim(), mean, keys_.dim()) + coded.slack_weight * mean_norm + kTiny;
      if (rankings_[i].decay != 0) {
        coded.least_penalty =
            *std::min_element(rankings_[i].row_penalty + row, rankings_[i].row_penalty + chunk_end);
        coded.dot_gate = DotGate(rankings_[i], coded.least_penalty, Threshold(i));
      }
      query.gate = coded.dot_gate;
    }
  }

  static void Sink(void* context, int64_t number, codes::Query& query, int64_t row, const float* most, uint32_t rows) {
    auto& scan = *static_cast<Scan*>(context);
    CodedQuery& coded = scan.work_.coded[static_cast<size_t>(number)];
    for (; rows != 0; rows &= rows - 1) {
      const int lane = std::countr_zero(rows);
      const int64_t at = row + lane;
      if (at < scan.row_begin_ || at >= scan.row_end_) continue;
      const char* key = scan.keys_.Row(at);
      for (size_t byte = 0; byte < scan.keys_.row_bytes(); byte += 64) __builtin_prefetch(key + byte);
      coded.rows[coded.pending] = at;
      coded.most[coded.pending] = most[lane];
      if (++coded.pending == kPending) {
        scan.LookAtPending(number);
        query.gate = coded.dot_gate;
      }
    }
  }

  // Ranks the waiting rows of one query by their exact keys.
  void LookAtPending(int64_t i) {
    CodedQuery& coded = work_.coded[static_cast<size_t>(i)];
    int64_t rows[kPending];
    size_t n = 0;
    for (int j = 0; j < coded.pending; ++j) {
      // The gate may have risen since, though not past what another chunk's penalty allows.
      const bool below = rankings_[i].decay == 0 && coded.most[j] < coded.dot_gate;
      if (!below) rows[n++] = coded.rows[j];
    }
    coded.pending = 0;
    if (n == 0) return;
    float dots[kPending];
    DotRows(keys_, absl::MakeConstSpan(rows, n), vectors_ + i * keys_.dim(), dots);
    const float before = Threshold(i);
    for (size_t j = 0; j < n; ++j) top_[i].Push(rankings_[i].Logit(dots[j], rows[j]), first_token_ + rows[j]);
    looked_at_ += static_cast<int64_t>(n);
    if (Threshold(i) != before) coded.dot_gate = DotGate(rankings_[i], coded.least_penalty, Threshold(i));
  }

  const KeyRows& keys_;
  const KeyCodes& codes_;
  const int64_t row_begin_, row_end_, first_token_;
  const float* const vectors_;
  const int64_t count_;
  const Ranking* const rankings_;
  TopK* const top_;
  const codes::Kernels& kernels_;
  Workspace& work_;
  int64_t looked_at_ = 0;
};

// Whether codes can prove anything about this ranking: logits must rise with dot products.
bool Provable(const Ranking& ranking) {
  return ranking.scale > 0 && std::isfinite(ranking.scale) && std::isfinite(ranking.addend) && ranking.decay >= 0 &&
         std::isfinite(ranking.decay);
}

}  // namespace

void ScanCertified(const KeyRows& keys, const KeyCodes& key_codes, int64_t row_begin, int64_t row_end,
                   int64_t first_token, const float* queries, int64_t count, const Ranking* rankings,
                   const float* floors, TopK* top, ScanCounts* counts) {
  if (row_begin >= row_end || count <= 0) return;
  int64_t coded_end = std::min(row_end, key_codes.rows());
  if (coded_end - row_begin < kLeastRows || !std::all_of(rankings, rankings + count, Provable)) coded_end = row_begin;
  if (coded_end > row_begin) {
    thread_local Workspace workspace;
    Scan scan(keys, key_codes, row_begin, coded_end, first_token, queries, count, rankings, floors, top, workspace);
    counts->looked_at += scan.Run();
    counts->by_code += count * (coded_end - row_begin);
  }
  ScanTopK(keys, coded_end, row_end, first_token, queries, count, rankings, top);
  counts->by_key += count * (row_end - coded_end);
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
