// SPDX-License-Identifier: Apache-2.0
// The exact scan beside what bounds it: a plain read of a buffer of the same size by the same threads, and beside
// what else there is: FAISS's flat index over the same keys. One iteration is one decode step of one layer.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "benchmark/benchmark.h"

#include "base/dtype.h"
#include "base/parallel.h"
#include "bench/micro/dot_product_peak.h"
#include "bench/micro/read_bandwidth.h"
#include "bench/random_floats.h"
#include "index/key_index.h"
#include "index/key_rows.h"
#include "index/scan/code_scan.h"
#include "index/scan/key_codes.h"
#include "index/scan/key_scan.h"
#include "index/top_k.h"

namespace mneme {
namespace {

constexpr int64_t kHeads = 8;
constexpr int64_t kTop = 32;
constexpr int64_t kChunkRows = 8192;

// Keys of kHeads heads; kept from one benchmark to the next, since filling them takes longer than scanning.
struct Layer {
  std::vector<std::unique_ptr<KeyRows>> heads;
  std::vector<std::unique_ptr<KeyCodes>> codes;
  size_t bytes = 0;       // of the rows
  size_t code_bytes = 0;  // one a dimension
};

const Layer& KeysOf(DType dtype, int64_t rows, int64_t dim) {
  static std::map<std::tuple<DType, int64_t, int64_t>, Layer> layers;
  const auto key = std::make_tuple(dtype, rows, dim);
  if (const auto found = layers.find(key); found != layers.end()) return found->second;
  layers.clear();  // one at a time fits any machine
  Layer& layer = layers[key];
  const int64_t kPattern = std::min<int64_t>(rows, 65536);
  const std::vector<float> values = RandomFloats(static_cast<size_t>(kPattern * dim), 1);
  const size_t row_bytes = RowBytes(dtype, dim);
  std::vector<char> encoded(static_cast<size_t>(kPattern) * row_bytes);
  for (int64_t r = 0; r < kPattern; ++r) {
    EncodeRow(values.data() + r * dim, dtype, encoded.data() + static_cast<size_t>(r) * row_bytes, dim);
  }
  for (int64_t head = 0; head < kHeads; ++head) {
    auto keys = std::make_unique<KeyRows>(dtype, dim);
    keys->Reserve(rows);
    for (int64_t row = 0; row < rows; row += kPattern) keys->Append(encoded.data(), std::min(kPattern, rows - row));
    layer.bytes += static_cast<size_t>(rows) * keys->row_bytes();
    auto codes = std::make_unique<KeyCodes>(dim);
    codes->Extend(*keys);
    layer.code_bytes += static_cast<size_t>(rows * dim);
    layer.codes.push_back(std::move(codes));
    layer.heads.push_back(std::move(keys));
  }
  return layer;
}

Executor& Threads(int64_t threads) {
  static std::map<int64_t, std::unique_ptr<Executor>> pools;
  std::unique_ptr<Executor>& pool = pools[threads];
  if (pool == nullptr) pool = MakeThreadPool(static_cast<size_t>(threads));
  return *pool;
}

std::pair<double, double> BestAndMedian(std::vector<double>& times) {
  std::sort(times.begin(), times.end());
  return {times.front(), times[times.size() / 2]};
}

double Seconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
}

// rows, queries a KV head, dim, dtype, threads
void BM_Scan(benchmark::State& state) {
  const int64_t rows = state.range(0), count = state.range(1), dim = state.range(2);
  const auto dtype = static_cast<DType>(state.range(3));
  Executor& pool = Threads(state.range(4));
  const Layer& layer = KeysOf(dtype, rows, dim);
  const std::vector<float> queries = RandomFloats(static_cast<size_t>(kHeads * count * dim), 2);
  const int64_t chunks = (rows + kChunkRows - 1) / kChunkRows;
  const std::vector<Ranking> rankings(static_cast<size_t>(count));
  std::vector<TopK> top(static_cast<size_t>(kHeads * chunks * count));

  ReadRounds reading = ReadingOf(layer.bytes, static_cast<size_t>(state.range(4)));
  std::vector<double> times;
  for (auto _ : state) {
    reading.Round();
    const auto start = std::chrono::steady_clock::now();
    pool.ParallelFor(static_cast<size_t>(kHeads * chunks), [&](size_t task) {
      const int64_t head = static_cast<int64_t>(task) / chunks;
      const int64_t begin = static_cast<int64_t>(task) % chunks * kChunkRows;
      TopK* own = top.data() + static_cast<int64_t>(task) * count;
      for (int64_t i = 0; i < count; ++i) own[i].Reset(kTop);
      ScanTopK(*layer.heads[static_cast<size_t>(head)], begin, std::min(rows, begin + kChunkRows), 0,
               queries.data() + head * count * dim, count, rankings.data(), own);
    });
    for (int64_t head = 0; head < kHeads; ++head) {
      TopK* first = top.data() + head * chunks * count;
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t chunk = 1; chunk < chunks; ++chunk) first[i].Merge(first[chunk * count + i]);
        benchmark::DoNotOptimize(first[i].Sorted().data());
      }
    }
    times.push_back(Seconds(start));
    state.SetIterationTime(times.back());
  }
  const auto [best, median] = BestAndMedian(times);
  const double speed = static_cast<double>(layer.bytes) / best;
  state.counters["best_ms"] = best * 1e3;
  state.counters["GB/s"] = speed / 1e9;
  state.counters["median_ms"] = median * 1e3;
  state.counters["read_GB/s"] = reading.Best() / 1e9;
  state.counters["of_read"] = speed / reading.Best();
  state.counters["of_read_median"] = speed * best / median / reading.Median();
  state.counters["GFLOP/s"] = 2e-9 * static_cast<double>(kHeads * count * rows * dim) / best;
  state.SetLabel(std::string(DTypeName(dtype)) + " " + std::string(KeyScanKernelName()));
}

void ScanArguments(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"rows", "queries", "dim", "type", "threads"});
  const auto add = [bench](int64_t rows, int64_t count, int64_t dim, DType dtype) {
    for (const int64_t threads : {1, 2}) bench->Args({rows, count, dim, static_cast<int64_t>(dtype), threads});
  };
  for (const DType dtype : {DType::kF16, DType::kF32, DType::kBF16, DType::kI8}) {
    for (const int64_t count : {1, 4, 8}) add(65536, count, 128, dtype);
  }
  for (const int64_t dim : {64, 256}) {
    for (const int64_t count : {1, 4, 8}) add(65536, count, dim, DType::kF16);
  }
  for (const int64_t rows : {4096, 16384, 262144}) add(rows, 4, 128, DType::kF16);
  for (const int64_t count : {512, 2048}) add(16384, count, 128, DType::kF16);  // prefill
}
BENCHMARK(BM_Scan)->Apply(ScanArguments)->Unit(benchmark::kMillisecond)->UseManualTime()->MinTime(0.2);

// The scan that codes answer; `steady`: with floors as the rows that the last step found give them.
void BM_CodeScan(benchmark::State& state) {
  const int64_t rows = state.range(0), count = state.range(1), dim = state.range(2);
  const auto dtype = static_cast<DType>(state.range(3));
  Executor& pool = Threads(state.range(4));
  const bool steady = state.range(5) != 0;
  const int64_t k = state.range(6);
  const Layer& layer = KeysOf(dtype, rows, dim);
  const std::vector<float> queries = RandomFloats(static_cast<size_t>(kHeads * count * dim), 2);
  const std::vector<Ranking> rankings(static_cast<size_t>(count));
  std::vector<TopK> top(static_cast<size_t>(kHeads * count), TopK(k));
  std::vector<float> floors(top.size(), -std::numeric_limits<float>::infinity());
  std::vector<ScanCounts> counts(kHeads);
  // By turns with scans, so that each finds the caches full of the other's bytes.
  ReadRounds reading = ReadingOf(layer.code_bytes, static_cast<size_t>(state.range(4)));
  std::vector<double> times;
  for (auto _ : state) {
    reading.Round();
    std::fill(counts.begin(), counts.end(), ScanCounts());
    const auto start = std::chrono::steady_clock::now();
    pool.ParallelFor(kHeads, [&](size_t head) {
      const size_t first = head * static_cast<size_t>(count);
      for (int64_t i = 0; i < count; ++i) top[first + static_cast<size_t>(i)].Reset(k);
      ScanCodesTopK(*layer.heads[head], *layer.codes[head], 0, rows, 0,
                    queries.data() + static_cast<int64_t>(first) * dim, count, rankings.data(), floors.data() + first,
                    top.data() + first, &counts[head]);
      for (int64_t i = 0; i < count; ++i) benchmark::DoNotOptimize(top[first + static_cast<size_t>(i)].Sorted().data());
    });
    times.push_back(Seconds(start));
    state.SetIterationTime(times.back());
    if (steady) {
      for (size_t i = 0; i < top.size(); ++i) floors[i] = top[i].Sorted().back().score;
    }
  }
  const auto [best, median] = BestAndMedian(times);
  const double speed = static_cast<double>(layer.code_bytes) / best;
  state.counters["best_ms"] = best * 1e3;
  state.counters["median_ms"] = median * 1e3;
  state.counters["read_GB/s"] = reading.Best() / 1e9;
  state.counters["of_read"] = speed / reading.Best();
  state.counters["of_read_median"] = speed * best / median / reading.Median();
  const double products = static_cast<double>(kHeads * count * rows * dim) / best;
  state.counters["GMAC/s"] = products / 1e9;
  if (const double peak = DotProductPeak() * static_cast<double>(state.range(4)); peak > 0) {
    state.counters["peak_GMAC/s"] = peak / 1e9;
    state.counters["of_peak"] = products / peak;
  }
  state.counters["keys"] = static_cast<double>(counts[0].reranked) / static_cast<double>(count);
  state.SetLabel(std::string(DTypeName(dtype)) + " " + std::string(CodeScanKernelName()));
}

void CodeScanArguments(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"rows", "queries", "dim", "type", "threads", "steady", "k"});
  const auto add = [bench](int64_t rows, int64_t count, int64_t dim, int64_t steady, int64_t k,
                           DType dtype = DType::kF16) {
    bench->Args({rows, count, dim, static_cast<int64_t>(dtype), 2, steady, k});
  };
  for (const int64_t dim : {64, 128, 256}) {
    for (const int64_t count : {1, 3, 4, 8}) {
      for (const int64_t steady : {0, 1}) add(65536, count, dim, steady, kTop);
    }
  }
  for (const int64_t k : {8, 64, 128, 256}) add(65536, 4, 128, 0, k);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) add(65536, 4, 128, 0, kTop, dtype);
  for (const int64_t rows : {4096, 16384, 262144, 1048576}) {
    for (const int64_t count : {1, 4, 8}) add(rows, count, 128, 0, kTop);
  }
  add(16384, 2048, 128, 0, kTop);  // prefill
}
BENCHMARK(BM_CodeScan)->Apply(CodeScanArguments)->Unit(benchmark::kMillisecond)->UseManualTime()->MinTime(0.2);

// rows, queries a KV head, dim, threads: FAISS's flat index, f32, one call a head.
void BM_FaissFlat(benchmark::State& state) {
  const int64_t rows = state.range(0), count = state.range(1), dim = state.range(2);
  Executor& pool = Threads(state.range(3));
  const std::vector<float> keys = RandomFloats(static_cast<size_t>(rows * dim), 1);
  const std::vector<float> queries = RandomFloats(static_cast<size_t>(kHeads * count * dim), 2);
  IndexSpec spec;
  spec.kind = IndexKind::kFlat;
  std::vector<std::unique_ptr<KeyIndex>> heads;
  for (int64_t head = 0; head < kHeads; ++head) {
    auto built = BuildKeyIndex(spec, keys.data(), rows, dim);
    if (!built.ok()) return state.SkipWithError("FAISS flat index was not built");
    heads.push_back(*std::move(built));
  }
  std::vector<int64_t> found(static_cast<size_t>(kHeads * count * kTop));
  double best = std::numeric_limits<double>::infinity();
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    pool.ParallelFor(kHeads, [&](size_t head) {
      const auto first = static_cast<int64_t>(head) * count;
      heads[head]->Search(queries.data() + first * dim, count, kTop, found.data() + first * kTop).IgnoreError();
    });
    best = std::min(best, Seconds(start));
  }
  state.counters["best_ms"] = best * 1e3;
  state.counters["GB/s"] = static_cast<double>(kHeads * rows * dim) * sizeof(float) / best / 1e9;
  state.SetLabel("faiss " + std::string(FaissVersion()));
}
BENCHMARK(BM_FaissFlat)
    ->ArgNames({"rows", "queries", "dim", "threads"})
    ->ArgsProduct({{65536}, {1, 4, 8}, {128}, {1, 2}})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime()
    ->MinTime(0.2);

}  // namespace
}  // namespace mneme
