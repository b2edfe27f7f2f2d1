// SPDX-License-Identifier: Apache-2.0
#include "index/scan/scan.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <memory_resource>
#include <optional>
#include <string>
#include <vector>

#include "base/cpu.h"
#include "base/scratch.h"
#include "index/scan/scan_kernel.h"

namespace mneme {
namespace {

using scan::Kernels;

static_assert(static_cast<int>(DType::kF32) == scan::kF32 && static_cast<int>(DType::kF16) == scan::kF16 &&
              static_cast<int>(DType::kBF16) == scan::kBF16 && static_cast<int>(DType::kI8) == scan::kI8);

constexpr int64_t kLanes = scan::kLanes;

// Queries are taken in passes whose values stay in the second-level cache beside the keys; a pass is still
// large enough that its arithmetic, not the reading of keys, takes the time.
constexpr int64_t kPassBytes = 192 << 10;

const Kernels* BestKernels() {
  for (const char* name : {"avx512", "avx2"}) {
    if (const Kernels* found = scan::FindKernels(name)) return found;
  }
  return &scan::kPlainKernels;
}

struct Choice {
  const Kernels* kernels;
  std::string name;
};

const Choice& Chosen() {
  static const Choice choice = [] {
    const Kernels* best = BestKernels();
    const char* wanted = std::getenv("MNEME_KERNELS");
    if (wanted == nullptr || *wanted == '\0') return Choice{best, best->name};
    if (const Kernels* found = scan::FindKernels(wanted)) return Choice{found, found->name};
    return Choice{best, std::string(best->name) + " (MNEME_KERNELS=" + wanted + " ignored)"};
  }();
  return choice;
}

std::atomic<const Kernels*> kernels_for_testing{nullptr};

const Kernels& CurrentKernels() {
  const Kernels* kernels = kernels_for_testing.load(std::memory_order_relaxed);
  return kernels != nullptr ? *kernels : *Chosen().kernels;
}

// The kernels' scratch: on the stack for every usual head size.
class Lanes {
 public:
  explicit Lanes(int64_t dim) {
    const auto floats = static_cast<size_t>((dim + 1) * kLanes);
    if (floats > std::size(fixed_)) data_ = static_cast<float*>(more_.emplace().allocate(floats * sizeof(float), 64));
  }
  float* data() { return data_; }

 private:
  alignas(64) float fixed_[257 * kLanes];
  std::optional<Scratch> more_;
  float* data_ = fixed_;
};

struct SinkContext {
  TopK* top;
  int64_t first_token;
};

// What spares the tanh of a soft cap: see scan::Query.
float Gate(const scan::Query& query) {
  if (!(query.soft_cap > 0) || query.decay != 0) return -std::numeric_limits<float>::infinity();
  const Ranking ranking{query.scale, query.soft_cap, query.addend, 0, nullptr};
  return static_cast<float>(ranking.LeastScaledDot(query.threshold, 0));
}

void PushSurvivors(void* context, int64_t number, scan::Query& query, int64_t row, const float* logits,
                   uint32_t lanes) {
  const auto* sink = static_cast<const SinkContext*>(context);
  TopK& top = sink->top[number];
  for (; lanes != 0; lanes &= lanes - 1) {
    const int lane = std::countr_zero(lanes);
    top.Push(logits[lane], sink->first_token + row + lane);
  }
  if (top.threshold() == query.threshold) return;
  query.threshold = top.threshold();
  query.gate = Gate(query);
}

}  // namespace

namespace scan {

const Kernels* FindKernels(const char* name) {
  if (std::strcmp(name, "plain") == 0) return &kPlainKernels;
#if defined(__x86_64__)
  if (std::strcmp(name, "avx2") == 0 && CpuHas(CpuTarget::kAvx2)) return &kAvx2Kernels;
  if (std::strcmp(name, "avx512") == 0 && CpuHas(CpuTarget::kAvx512)) return &kAvx512Kernels;
#endif
  return nullptr;
}

void UseKernelsForTesting(const Kernels* kernels) {
  kernels_for_testing.store(kernels);
}

}  // namespace scan

double Ranking::LeastScaledDot(float threshold, float penalty) const {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const double taken = decay != 0 ? static_cast<double>(decay) * penalty : 0.0;
  double least = static_cast<double>(threshold) - addend + taken;
  // Nothing is given for infinities, nor for the NaN that they make.
  if (!(std::fabs(least) < kInfinity)) return -kInfinity;
  least -= 1e-6 * (std::fabs(threshold) + std::fabs(addend) + std::fabs(taken));
  if (soft_cap > 0) {
    const double cap = soft_cap;
    const double ratio = least / cap - 1e-5 * (1 + (std::fabs(threshold) + std::fabs(addend) + std::fabs(taken)) / cap);
    if (ratio >= 1) return kInfinity;
    if (!(ratio > -1)) return -kInfinity;
    least = cap * std::atanh(ratio);
    least -= 1e-5 * std::fabs(least);
  }
  return least;
}

void ScanTopK(const KeyRows& keys, int64_t row_begin, int64_t row_end, int64_t first_token, const float* queries,
              int64_t count, const Ranking* rankings, TopK* top) {
  if (row_begin >= row_end || count <= 0) return;
  const Kernels& kernels = CurrentKernels();
  const int64_t dim = keys.dim();
  Lanes lanes(dim);

  const int64_t pass =
      std::max<int64_t>(kPassBytes / static_cast<int64_t>(sizeof(float)) / std::max<int64_t>(dim, 1), 16);
  Scratch scratch;
  std::pmr::vector<scan::Query> state(static_cast<size_t>(std::min(pass, count)), &scratch);
  for (int64_t first = 0; first < count; first += pass) {
    const int64_t n = std::min(pass, count - first);
    for (int64_t i = 0; i < n; ++i) {
      const Ranking& ranking = rankings[first + i];
      state[static_cast<size_t>(i)] = {
          .values = queries + (first + i) * dim,
          .scale = ranking.scale,
          .soft_cap = ranking.soft_cap,
          .addend = ranking.addend,
          .decay = ranking.decay,
          .row_penalty = ranking.row_penalty,
          .plain = !(ranking.soft_cap > 0) && ranking.decay == 0,
          .threshold = top[first + i].threshold(),
          .gate = 0,
      };
      state[static_cast<size_t>(i)].gate = Gate(state[static_cast<size_t>(i)]);
    }
    SinkContext sink{top + first, first_token};
    for (int64_t row = row_begin; row < row_end;) {
      int64_t contiguous;
      const char* data = keys.Rows(row, &contiguous);
      const scan::Rows rows{
          .data = data,
          .row_bytes = static_cast<int64_t>(keys.row_bytes()),
          .count = std::min(contiguous, row_end - row),
          .row = row,
          .element = static_cast<scan::Element>(keys.dtype()),
          .dim = dim,
      };
      kernels.scan(rows, state.data(), n, lanes.data(), &PushSurvivors, &sink);
      row += rows.count;
    }
  }
}

void DotKeys(DType dtype, int64_t dim, absl::Span<const char* const> keys, const float* query, float* dots) {
  if (keys.empty()) return;
  const Kernels& kernels = CurrentKernels();
  Lanes lanes(dim);
  const char* at[kLanes];
  float values[kLanes];
  for (size_t first = 0; first < keys.size(); first += kLanes) {
    const size_t n = std::min<size_t>(kLanes, keys.size() - first);
    for (size_t i = 0; i < kLanes; ++i) at[i] = keys[first + std::min(i, n - 1)];
    kernels.dot(static_cast<scan::Element>(dtype), dim, at, query, lanes.data(), values);
    std::copy_n(values, n, dots + first);
  }
}

void DotRows(const KeyRows& keys, absl::Span<const int64_t> rows, const float* query, float* dots) {
  const char* at[kLanes];
  for (size_t first = 0; first < rows.size(); first += kLanes) {
    const size_t n = std::min<size_t>(kLanes, rows.size() - first);
    for (size_t i = 0; i < n; ++i) at[i] = keys.Row(rows[first + i]);
    DotKeys(keys.dtype(), keys.dim(), absl::MakeConstSpan(at, n), query, dots + first);
  }
}

absl::string_view ScanKernelName() {
  const Kernels* kernels = kernels_for_testing.load(std::memory_order_relaxed);
  return kernels != nullptr ? absl::string_view(kernels->name) : absl::string_view(Chosen().name);
}

}  // namespace mneme
