// SPDX-License-Identifier: Apache-2.0
#include "index/scan/key_scan.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <memory_resource>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "base/cpu.h"
#include "base/scratch.h"
#include "base/status.h"
#include "index/scan/key_scan_kernel.h"

namespace mneme {
namespace {

using key_scan::Kernels;
using key_scan::kLanes;

// Queries are compared with the keys in passes whose values stay in the second-level cache beside the keys. A pass is
// still large enough that arithmetic, not the reading of keys, limits it.
constexpr int64_t kPassBytes = 192 << 10;

// Rows that ScanTopK reads from a KeySource at a time.
constexpr int64_t kSourceRows = 256;

const Kernels* BestKernels() {
  for (const char* name : {"avx512", "avx2"}) {
    if (const Kernels* found = key_scan::FindKernels(name)) return found;
  }
  return &key_scan::kPlainKernels;
}

struct ChosenKernels {
  const Kernels* kernels;
  std::string name;  // with a note if MNEME_KERNELS is ignored
};

ChosenKernels ChooseKernels() {
  const Kernels* best = BestKernels();
  const char* wanted = std::getenv("MNEME_KERNELS");
  if (wanted == nullptr || *wanted == '\0') return {best, best->name};
  if (const Kernels* found = key_scan::FindKernels(wanted)) return {found, found->name};
  return {best, std::string(best->name) + " (MNEME_KERNELS=" + wanted + " ignored)"};
}

const ChosenKernels& Chosen() {
  static const ChosenKernels chosen = ChooseKernels();
  return chosen;
}

std::atomic<const Kernels*> kernels_for_testing{nullptr};

const Kernels& CurrentKernels() {
  const Kernels* kernels = kernels_for_testing.load(std::memory_order_relaxed);
  return kernels != nullptr ? *kernels : *Chosen().kernels;
}

// The kernels' scratch space. It lies on the stack for all usual head sizes.
class Columns {
 public:
  explicit Columns(int64_t dim) {
    const auto floats = static_cast<size_t>((dim + 1) * kLanes);
    if (floats > std::size(fixed_)) data_ = static_cast<float*>(more_.emplace().allocate(floats * sizeof(float), 64));
  }
  float* data() { return data_; }

 private:
  alignas(64) float fixed_[257 * kLanes];
  std::optional<Scratch> more_;
  float* data_ = fixed_;
};

// Only a soft cap without decay has a use for the bound.
float MinScaledDot(const key_scan::Query& query) {
  if (!(query.soft_cap > 0) || query.decay != 0) return -std::numeric_limits<float>::infinity();
  const Ranking ranking{.scale = query.scale, .soft_cap = query.soft_cap, .addend = query.addend};
  return static_cast<float>(ranking.MinScaledDot(query.threshold, 0));
}

key_scan::Query MakeQuery(const float* values, const Ranking& ranking, float threshold) {
  key_scan::Query query = {
      .values = values,
      .scale = ranking.scale,
      .soft_cap = ranking.soft_cap,
      .addend = ranking.addend,
      .decay = ranking.decay,
      .row_penalty = ranking.row_penalty,
      .affine = !(ranking.soft_cap > 0) && ranking.decay == 0,
      .threshold = threshold,
      .min_scaled_dot = 0,
  };
  query.min_scaled_dot = MinScaledDot(query);
  return query;
}

struct PushContext {
  TopK* top;  // [queries of the pass]
  int64_t first_token;
};

// The kernels' HitCallback; context: a PushContext.
void PushHits(void* context, key_scan::Query& query, const key_scan::RowHits& hits) {
  const auto* push = static_cast<const PushContext*>(context);
  TopK& top = push->top[hits.query];
  for (uint32_t lanes = hits.lanes; lanes != 0; lanes &= lanes - 1) {
    const int lane = std::countr_zero(lanes);
    top.Push(hits.logits[lane], push->first_token + hits.first_row + lane);
  }
  if (top.threshold() == query.threshold) return;
  query.threshold = top.threshold();
  query.min_scaled_dot = MinScaledDot(query);
}

}  // namespace

namespace key_scan {

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

}  // namespace key_scan

void ScanTopK(const KeyRows& keys, int64_t row_begin, int64_t row_end, int64_t first_token, const float* queries,
              int64_t count, const Ranking* rankings, TopK* top) {
  if (row_begin >= row_end || count <= 0) return;
  const Kernels& kernels = CurrentKernels();
  const int64_t dim = keys.dim();
  Columns columns(dim);
  const int64_t pass_queries =
      std::max<int64_t>(kPassBytes / static_cast<int64_t>(sizeof(float)) / std::max<int64_t>(dim, 1), 16);
  Scratch scratch;
  std::pmr::vector<key_scan::Query> pass(static_cast<size_t>(std::min(pass_queries, count)), &scratch);
  for (int64_t first = 0; first < count; first += pass_queries) {
    const int64_t n = std::min(pass_queries, count - first);
    for (int64_t i = 0; i < n; ++i) {
      pass[static_cast<size_t>(i)] =
          MakeQuery(queries + (first + i) * dim, rankings[first + i], top[first + i].threshold());
    }
    PushContext push{.top = top + first, .first_token = first_token};
    for (int64_t row = row_begin; row < row_end;) {
      int64_t contiguous;
      const char* data = keys.Rows(row, &contiguous);
      const key_scan::Rows rows{
          .data = data,
          .row_bytes = static_cast<int64_t>(keys.row_bytes()),
          .count = std::min(contiguous, row_end - row),
          .first_row = row,
          .dtype = keys.dtype(),
          .dim = dim,
      };
      kernels.scan(rows, pass.data(), n, columns.data(), &PushHits, &push);
      row += rows.count;
    }
  }
}

absl::Status ScanTopK(KeySource& keys, int64_t row_begin, int64_t row_end, int64_t first_token, const float* queries,
                      int64_t count, const Ranking* rankings, TopK* top) {
  std::vector<int64_t> numbers;
  std::vector<char> encoded;
  std::vector<Ranking> shifted(rankings, rankings + count);
  for (int64_t begin = row_begin; begin < row_end; begin += kSourceRows) {
    numbers.resize(static_cast<size_t>(std::min(kSourceRows, row_end - begin)));
    std::iota(numbers.begin(), numbers.end(), begin);
    encoded.resize(numbers.size() * keys.row_bytes());
    MNEME_RETURN_IF_ERROR(keys.Read(numbers, absl::MakeSpan(encoded)));
    const auto n = static_cast<int64_t>(numbers.size());
    KeyRows rows(keys.dtype(), keys.dim());
    rows.Append(encoded.data(), n);
    // Row 0 of `rows` is row `begin` of `keys`.
    for (int64_t i = 0; i < count; ++i) {
      const float* const penalty = rankings[i].row_penalty;
      shifted[static_cast<size_t>(i)].row_penalty = penalty != nullptr ? penalty + begin : nullptr;
    }
    ScanTopK(rows, 0, n, first_token + begin, queries, count, shifted.data(), top);
  }
  return absl::OkStatus();
}

void DotKeys(DType dtype, int64_t dim, absl::Span<const char* const> keys, const float* query, float* dots) {
  if (keys.empty()) return;
  const Kernels& kernels = CurrentKernels();
  Columns columns(dim);
  const char* rows[kLanes];
  float values[kLanes];
  for (size_t first = 0; first < keys.size(); first += kLanes) {
    const size_t n = std::min<size_t>(kLanes, keys.size() - first);
    for (size_t i = 0; i < kLanes; ++i) rows[i] = keys[first + std::min(i, n - 1)];
    kernels.dot(dtype, dim, rows, query, columns.data(), values);
    std::copy_n(values, n, dots + first);
  }
}

void DotRows(const KeyRows& keys, absl::Span<const int64_t> rows, const float* query, float* dots) {
  const char* encoded[kLanes];
  for (size_t first = 0; first < rows.size(); first += kLanes) {
    const size_t n = std::min<size_t>(kLanes, rows.size() - first);
    for (size_t i = 0; i < n; ++i) encoded[i] = keys.Row(rows[first + i]);
    DotKeys(keys.dtype(), keys.dim(), absl::MakeConstSpan(encoded, n), query, dots + first);
  }
}

absl::string_view KeyScanKernelName() {
  const Kernels* kernels = kernels_for_testing.load(std::memory_order_relaxed);
  return kernels != nullptr ? absl::string_view(kernels->name) : absl::string_view(Chosen().name);
}

}  // namespace mneme
