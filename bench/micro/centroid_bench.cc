// SPDX-License-Identifier: Apache-2.0
// The index kind centroid beside the exact scan, on recorded keys and queries of a model: both search for the same
// queries by turns. Prints one line for each layer and KV head.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "bench/random_floats.h"
#include "index/centroid/centroid_search.h"
#include "index/scan/code_scan.h"
#include "index/scan/key_scan.h"
#include "tests/index/recorded_qk.h"

namespace mneme {
namespace {

constexpr int64_t kTop = 32;

// Keys in memory, read one by one.
class RowSource final : public KeySource {
 public:
  explicit RowSource(const KeyRows& keys) : KeySource(keys.dtype(), keys.dim()), keys_(keys) {}
  absl::Status Read(absl::Span<const int64_t> rows, absl::Span<char> keys) override {
    for (size_t i = 0; i < rows.size(); ++i) {
      std::memcpy(keys.data() + i * row_bytes(), keys_.Row(rows[i]), row_bytes());
    }
    return absl::OkStatus();
  }
  void Prefetch(absl::Span<const int64_t> rows) override {
    for (const int64_t row : rows) __builtin_prefetch(keys_.Row(row));
  }

 private:
  const KeyRows& keys_;
};

double Seconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

// What the rows found of one query are worth.
struct Quality {
  double recall = 0, mass = 0, error = 0;
};

// exact, found: best first. values: f32 [rows, dim]. mass: of the exact rows' attention, what the rows found have.
// error: of attention over the rows found against attention over the exact ones, relative.
Quality Judge(absl::Span<const Scored> exact, absl::Span<const Scored> found, const std::vector<float>& values,
              int64_t dim) {
  Quality quality;
  const double greatest = exact.front().score;
  double all = 0, kept = 0, hits = 0;
  for (const Scored& row : exact) {
    const double weight = std::exp(row.score - greatest);
    const bool hit = std::any_of(found.begin(), found.end(), [&](const Scored& f) { return f.index == row.index; });
    all += weight;
    kept += hit ? weight : 0;
    hits += hit ? 1 : 0;
  }
  const auto output = [&](absl::Span<const Scored> rows) {
    std::vector<double> sum(static_cast<size_t>(dim), 0.0);
    double total = 0;
    for (const Scored& row : rows) {
      const double weight = std::exp(row.score - greatest);
      total += weight;
      for (int64_t d = 0; d < dim; ++d) {
        sum[static_cast<size_t>(d)] += weight * values[static_cast<size_t>(row.index * dim + d)];
      }
    }
    for (double& x : sum) x /= total;
    return sum;
  };
  const std::vector<double> a = output(exact), b = output(found);
  double difference = 0, norm = 0;
  for (size_t d = 0; d < a.size(); ++d) difference += (a[d] - b[d]) * (a[d] - b[d]), norm += a[d] * a[d];
  quality.recall = hits / static_cast<double>(exact.size());
  quality.mass = kept / all;
  quality.error = std::sqrt(difference / norm);
  return quality;
}

struct Figures {
  std::vector<double> exact_times, centroid_times;  // of the query heads of one KV head
  double recall = 0, mass = 0, worst_mass = 1, error = 0, estimate = 0, in_bound = 0;
  double searches = 0;
  CentroidCounts counts;
};

// One KV head: its keys, both ways to search them, and what was measured.
class Head {
 public:
  Head(const RecordedLayer& layer, int32_t head, const IndexSpec& spec)
      : layer_(layer),
        head_(head),
        dim_(layer.dim),
        group_(layer.query_heads / layer.kv_heads),
        keys_(DType::kF16, dim_),
        codes_(dim_),
        source_(keys_),
        values_(RandomFloats(static_cast<size_t>(layer.rows * dim_), 5)),
        queries_(static_cast<size_t>(group_ * dim_)),
        rankings_(static_cast<size_t>(group_)),
        exact_(static_cast<size_t>(group_), TopK(kTop)),
        found_(static_cast<size_t>(group_), TopK(kTop)) {
    keys_.Reserve(layer.rows);
    std::vector<char> encoded(RowBytes(DType::kF16, dim_));
    std::vector<float> decoded(static_cast<size_t>(layer.rows * dim_));
    for (int64_t r = 0; r < layer.rows; ++r) {
      EncodeRow(layer.Keys(head) + r * dim_, DType::kF16, encoded.data(), dim_);
      keys_.Append(encoded.data(), 1);
      keys_.Decode(r, decoded.data() + r * dim_);
    }
    codes_.Extend(keys_);
    const auto start = std::chrono::steady_clock::now();
    auto built = BuildCentroidIndex(spec, decoded.data(), layer.rows, dim_);
    if (!built.ok()) {
      std::fprintf(stderr, "%s\n", built.status().ToString().c_str());
      std::exit(1);
    }
    index_ = *std::move(built);
    build_seconds_ = Seconds(start);
  }

  void Search(int64_t query, CodeScan& scan, CentroidSearch& search) {
    for (int64_t g = 0; g < group_; ++g) {
      const float* const from = layer_.Queries(static_cast<int32_t>(head_ * group_ + g)) + query * dim_;
      std::copy_n(from, dim_, queries_.data() + g * dim_);
      exact_[static_cast<size_t>(g)].Reset(kTop);
      found_[static_cast<size_t>(g)].Reset(kTop);
    }
    auto start = std::chrono::steady_clock::now();
    scan.Begin(queries_.data(), group_, dim_, nullptr, exact_.data());
    scan.Add(keys_, codes_, 0, layer_.rows, 0, rankings_.data());
    if (!scan.End().ok()) std::exit(1);
    figures_.exact_times.push_back(Seconds(start));
    start = std::chrono::steady_clock::now();
    const CentroidQuery request = {queries_.data(), group_, rankings_.data(), &source_, 0,
                                   layer_.rows,     0,      found_.data()};
    if (!search.Run(*index_->AsCentroid(), request, &figures_.counts).ok()) std::exit(1);
    figures_.centroid_times.push_back(Seconds(start));
    for (size_t g = 0; g < found_.size(); ++g) {
      const Quality quality = Judge(exact_[g].Sorted(), found_[g].Sorted(), values_, dim_);
      figures_.recall += quality.recall;
      figures_.mass += quality.mass;
      figures_.worst_mass = std::min(figures_.worst_mass, quality.mass);
      figures_.error += quality.error;
      figures_.estimate += search.missed()[g];
      figures_.in_bound += 1 - quality.mass <= search.missed_at_most()[g] ? 1 : 0;
      ++figures_.searches;
    }
  }

  void Print() const {
    const Figures& f = figures_;
    const double exact = Median(f.exact_times), centroid = Median(f.centroid_times), n = f.searches;
    const double code_bytes = static_cast<double>(codes_.block_bytes()) / static_cast<double>(KeyCodes::kBlockRows);
    const double probed = static_cast<double>(f.counts.probed) / static_cast<double>(f.counts.searched);
    std::printf(
        "layer %2d head %d: exact %6.1f us, centroid %6.1f us (%5.2f x), rows %.4f, bytes %.4f, recall %.3f, mass %.4f "
        "(least %.3f), output error %.4f, miss stated %.4f true %.4f, in bound %.3f, build %.2f s, RAM %.2f x codes\n",
        layer_.layer, head_, exact * 1e6, centroid * 1e6, exact / centroid, probed,
        probed + static_cast<double>(index_->AsCentroid()->parts().centroids->rows()) / layer_.rows, f.recall / n,
        f.mass / n, f.worst_mass, f.error / n, f.estimate / n, 1 - f.mass / n, f.in_bound / n, build_seconds_,
        static_cast<double>(index_->MemoryBytes()) / (code_bytes * layer_.rows));
  }

 private:
  const RecordedLayer& layer_;
  const int32_t head_;
  const int64_t dim_;
  const int64_t group_;
  KeyRows keys_;
  KeyCodes codes_;
  RowSource source_;
  std::unique_ptr<KeyIndex> index_;
  double build_seconds_ = 0;
  const std::vector<float> values_;
  std::vector<float> queries_;
  const std::vector<Ranking> rankings_;
  std::vector<TopK> exact_, found_;
  Figures figures_;
};

int Main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "Usage: %s RECORDING [INDEX]\nRECORDING is a file of mneme-llama record.\n", argv[0]);
    return 2;
  }
  const auto spec = ParseIndexSpec(argc > 2 ? argv[2] : "centroid");
  if (!spec.ok() || spec->kind != IndexKind::kCentroid) {
    std::fprintf(stderr, "INDEX: expected an index of kind centroid\n");
    return 2;
  }
  std::vector<RecordedLayer> layers;
  std::string error;
  if (!ReadRecordedQk(argv[1], &layers, &error)) {
    std::fprintf(stderr, "%s\n", error.c_str());
    return 1;
  }
  std::printf("%s, %s kernels, k = %d, %d rows\n", FormatIndexSpec(*spec).c_str(),
              std::string(CodeScanKernelName()).c_str(), static_cast<int>(kTop),
              layers.empty() ? 0 : layers.front().rows);
  std::vector<std::unique_ptr<Head>> heads;
  int32_t queries = std::numeric_limits<int32_t>::max();
  for (const RecordedLayer& layer : layers) {
    queries = std::min(queries, layer.queries);
    for (int32_t head = 0; head < layer.kv_heads; ++head) heads.push_back(std::make_unique<Head>(layer, head, *spec));
  }
  CodeScan scan;
  CentroidSearch search;
  // By turns, so that no head's codes stay in the caches for its next query where all heads' together do not fit.
  for (int32_t query = 0; query < queries; ++query) {
    for (const std::unique_ptr<Head>& head : heads) head->Search(query, scan, search);
  }
  for (const std::unique_ptr<Head>& head : heads) head->Print();
  return 0;
}

}  // namespace
}  // namespace mneme

int main(int argc, char** argv) {
  return mneme::Main(argc, argv);
}
