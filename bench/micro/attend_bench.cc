// SPDX-License-Identifier: Apache-2.0
// The engine as a host sees it, through the C ABI: layer-steps of decoding and of prefill. Each figure stands beside
// what the machine does at best in the same run: its read bandwidth, its products of bytes.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "benchmark/benchmark.h"
#include "mneme.h"

#include "bench/host.h"
#include "bench/micro/dot_product_peak.h"
#include "bench/micro/engine.h"
#include "bench/micro/read_bandwidth.h"
#include "bench/random_floats.h"
#include "tests/index/recorded_qk.h"

namespace mneme {
namespace {

// Of RAM that the machine can give without swapping; as many as one likes where it does not say.
int64_t AvailableBytes() {
  const int64_t kib = ProcField("/proc/meminfo", "MemAvailable");
  return kib < 0 ? std::numeric_limits<int64_t>::max() : kib * 1024;
}

// Of an element as it is stored.
constexpr int64_t kBytes[] = {0, 4, 2, 2, 1};  // an element of each mneme_dtype

// Layer-steps of a memory: in each, new tokens attend to all of its rows and to 512 local ones, joint.
struct Steps {
  int64_t tokens;  // in memory
  int q_heads;
  int kv_heads;
  int dim;
  int threads;
  int64_t queries;  // new tokens a step
  int64_t top_k;
  std::vector<float> vectors;  // [steps, queries, q_heads, dim], which come again and again
};

void Measure(benchmark::State& state, Engine& engine, const Steps& steps) {
  constexpr int64_t kLocal = 512;
  const auto floats = static_cast<size_t>(steps.queries * steps.q_heads * steps.dim);
  // Sealed, as what a memory holds for long is.
  if (steps.tokens > 0) Check(mneme_memory_commit(engine.memory, MNEME_DURABILITY_BUFFERED, nullptr));
  std::vector<float> query(steps.vectors.begin(), steps.vectors.begin() + static_cast<long>(floats));
  std::vector<float> output(query.size());
  const int64_t local_rows = std::max(kLocal, steps.queries);
  const std::vector<uint16_t> local(static_cast<size_t>(local_rows * steps.kv_heads * steps.dim), 0x3400);
  const int64_t query_shape[] = {steps.queries, steps.q_heads, steps.dim};
  const int64_t local_shape[] = {local_rows, steps.kv_heads, steps.dim};
  const mneme_tensor query_tensor = {query.data(), MNEME_DTYPE_F32, MNEME_DEVICE_CPU, 0, 3, query_shape, nullptr};
  const mneme_tensor output_tensor = {output.data(), MNEME_DTYPE_F32, MNEME_DEVICE_CPU, 0, 3, query_shape, nullptr};
  const mneme_tensor local_tensor = {
      const_cast<uint16_t*>(local.data()), MNEME_DTYPE_F16, MNEME_DEVICE_CPU, 0, 3, local_shape, nullptr};
  mneme_attend_args args = MNEME_ATTEND_ARGS_INIT;
  args.query = &query_tensor;
  args.output = &output_tensor;
  args.local_keys = args.local_values = &local_tensor;
  args.default_top_k = steps.top_k;
  const double code_bytes = static_cast<double>(steps.tokens) * steps.kv_heads * steps.dim;
  // By turns with steps, so that each finds the caches full of the other's bytes.
  ReadRounds reading = ReadingOf(static_cast<size_t>(std::max(code_bytes, 1e6)), static_cast<size_t>(steps.threads));
  std::vector<double> times;
  Check(mneme_attend(&engine.memory, 1, &args));
  mneme_store_stats before = MNEME_STORE_STATS_INIT;
  Check(mneme_store_get_stats(engine.store, &before));
  for (auto _ : state) {
    const size_t step = times.size() % (steps.vectors.size() / floats);
    std::copy_n(steps.vectors.begin() + static_cast<long>(step * floats), floats, query.begin());
    reading.Round();
    const auto start = std::chrono::steady_clock::now();
    Check(mneme_attend(&engine.memory, 1, &args));
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    state.SetIterationTime(times.back());
  }
  mneme_store_stats after = MNEME_STORE_STATS_INIT;
  Check(mneme_store_get_stats(engine.store, &after));
  std::sort(times.begin(), times.end());
  const double best = times.front(), median = times[times.size() / 2];
  state.counters["best_ms"] = best * 1e3;
  state.counters["median_ms"] = median * 1e3;
  state.counters["keys"] = static_cast<double>(after.reranked_pairs - before.reranked_pairs) /
                           static_cast<double>(times.size()) / static_cast<double>(steps.q_heads * steps.queries);
  if (steps.tokens > 0) {
    state.counters["read_GB/s"] = reading.Best() / 1e9;
    state.counters["of_codes"] = code_bytes / best / reading.Best();
    state.counters["of_codes_median"] = code_bytes / median / reading.Median();
    // Of the memory alone: the local rows' products are made in floats.
    const int group = steps.q_heads / steps.kv_heads;
    const double products = static_cast<double>(steps.queries * group) * code_bytes / best;
    state.counters["GMAC/s"] = products / 1e9;
    if (const double peak = DotProductPeak() * steps.threads; peak > 0) {
      state.counters["peak_GMAC/s"] = peak / 1e9;
      state.counters["of_peak"] = products / peak;
    }
  }
}

// Random rows.
void Attend(benchmark::State& state) {
  const int64_t tokens = state.range(0);
  const auto group = static_cast<int>(state.range(1));
  const auto dim = static_cast<int>(state.range(2));
  const auto kv_heads = static_cast<int>(state.range(3));
  const auto threads = static_cast<int>(state.range(4));
  const int64_t queries = state.range(5);
  const double likeness = static_cast<double>(state.range(6)) / 100;
  const auto stored = static_cast<int>(state.range(7));
  const int q_heads = kv_heads * group;
  // Keys, values, codes with their bounds, and the buffer that bandwidth is measured on.
  if (tokens * kv_heads * dim * (2 * kBytes[stored] + 3) > AvailableBytes()) {
    return state.SkipWithError("not enough RAM is free");
  }
  Engine engine(1, q_heads, kv_heads, dim, threads, stored);
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> rows(static_cast<size_t>(4096 * kv_heads * dim));
  for (int64_t done = 0; done < tokens; done += 4096) {
    for (float& x : rows) x = normal(random);
    engine.Append(0, std::min<int64_t>(4096, tokens - done), rows.data());
  }
  // Steps of a text: each query as like the one before as asked.
  constexpr size_t kSteps = 16;
  const auto floats = static_cast<size_t>(queries * q_heads * dim);
  std::vector<float> vectors(kSteps * floats);
  for (size_t i = 0; i < vectors.size(); ++i) {
    const auto news = static_cast<float>(std::sqrt(1 - likeness * likeness));
    vectors[i] =
        i < floats ? normal(random) : static_cast<float>(likeness) * vectors[i - floats] + news * normal(random);
  }
  Measure(state, engine, {tokens, q_heads, kv_heads, dim, threads, queries, state.range(8), std::move(vectors)});
}

// Keys and queries of a model, all layers of a recording side by side as the heads of one. A step's queries stand
// RecordingPlan::kQueryStride tokens after those of the step before.
void AttendRecorded(benchmark::State& state, const std::string& path) {
  std::vector<RecordedLayer> layers;
  std::string error;
  if (!ReadRecordedQk(path, &layers, &error)) return state.SkipWithError(error.c_str());
  if (layers.empty()) return state.SkipWithError("a recording of no layers");
  const auto threads = static_cast<int>(state.range(0));
  const RecordedLayer& first = layers.front();
  const int64_t rows = first.rows, dim = first.dim, group = first.query_heads / first.kv_heads;
  int64_t kv_heads = 0;
  for (const RecordedLayer& layer : layers) {
    if (layer.rows != rows || layer.dim != dim || layer.query_heads != group * layer.kv_heads ||
        layer.queries != first.queries) {
      return state.SkipWithError("layers of different shapes");
    }
    kv_heads += layer.kv_heads;
  }
  // The queries are scaled.
  Engine engine(1, static_cast<int>(kv_heads * group), static_cast<int>(kv_heads), static_cast<int>(dim), threads,
                MNEME_DTYPE_F16, 1);
  std::vector<float> piece;
  constexpr int64_t kPiece = 4096;
  for (int64_t done = 0; done < rows; done += kPiece) {
    const int64_t n = std::min(kPiece, rows - done);
    piece.clear();
    for (const RecordedLayer& layer : layers) {
      for (int32_t head = 0; head < layer.kv_heads; ++head) {
        piece.insert(piece.end(), layer.Keys(head) + done * dim, layer.Keys(head) + (done + n) * dim);
      }
    }
    const int64_t strides[] = {dim, n * dim, 1};
    engine.Append(0, n, piece.data(), strides);
  }
  std::vector<float> vectors;
  for (int32_t query = 0; query < first.queries; ++query) {
    for (const RecordedLayer& layer : layers) {
      for (int32_t head = 0; head < layer.query_heads; ++head) {
        const float* const vector = layer.Queries(head) + query * dim;
        vectors.insert(vectors.end(), vector, vector + dim);
      }
    }
  }
  layers.clear();
  state.counters["N"] = static_cast<double>(rows);
  state.counters["G"] = static_cast<double>(group);
  state.counters["d"] = static_cast<double>(dim);
  state.counters["heads"] = static_cast<double>(kv_heads);
  Measure(state, engine,
          {rows, static_cast<int>(kv_heads * group), static_cast<int>(kv_heads), static_cast<int>(dim), threads, 1, 32,
           std::move(vectors)});
}

// Each argument changed by itself from 65,536 tokens, G = 4, d = 128, 8 KV heads, one query, f16, k = 32; and what
// models ask for. like: how neighbouring queries correlate, in percent.
void AttendArguments(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"N", "G", "d", "heads", "threads", "queries", "like", "type", "k"});
  const auto add = [bench](int64_t tokens, int64_t group, int64_t dim, int64_t heads, int64_t threads, int64_t queries,
                           int64_t like, int64_t type = MNEME_DTYPE_F16, int64_t k = 32) {
    bench->Args({tokens, group, dim, heads, threads, queries, like, type, k});
  };
  add(0, 4, 128, 8, 2, 1, 0);
  add(0, 3, 64, 3, 1, 1, 0);
  for (const int64_t tokens : {1, 64}) add(tokens, 3, 64, 3, 1, 1, 0);
  for (const int64_t like : {90, 0}) add(4096, 4, 128, 8, 2, 1, like);
  for (const int64_t tokens : {16384, 262144}) add(tokens, 4, 128, 8, 2, 1, 0);
  for (const int64_t group : {1, 3, 4, 8}) add(65536, group, 128, 8, 2, 1, 90);
  for (const int64_t group : {4, 8}) add(65536, group, 128, 8, 2, 1, 0);
  for (const int64_t type : {MNEME_DTYPE_F32, MNEME_DTYPE_BF16, MNEME_DTYPE_I8}) add(65536, 4, 128, 8, 2, 1, 0, type);
  for (const int64_t k : {8, 128, 256}) add(65536, 4, 128, 8, 2, 1, 0, MNEME_DTYPE_F16, k);
  add(65536, 3, 64, 8, 2, 1, 90);
  add(65536, 4, 256, 8, 2, 1, 90);
  add(8192, 3, 64, 3, 2, 1, 90);
  // Prefill.
  add(8192, 3, 64, 3, 2, 512, 90);
  add(32768, 4, 64, 8, 2, 512, 0);
  add(32768, 4, 128, 8, 2, 512, 0);
  add(16384, 4, 256, 1, 2, 512, 0);
}
BENCHMARK(Attend)->Apply(AttendArguments)->Unit(benchmark::kMillisecond)->UseManualTime();

// A memory that takes minutes to fill is made once: with a given number of steps.
BENCHMARK(Attend)
    ->ArgNames({"N", "G", "d", "heads", "threads", "queries", "like", "type", "k"})
    ->Args({1048576, 4, 128, 8, 2, 1, 0, MNEME_DTYPE_F16, 32})
    ->Iterations(40)
    ->Unit(benchmark::kMillisecond)
    ->UseManualTime();

// What a call costs by itself: a memory of one row, or of 64, and no local rows (SmolLM2-135M's shape, one thread).
void AttendOverhead(benchmark::State& state) {
  Engine engine(1, 9, 3, 64, 1, MNEME_DTYPE_F16);
  engine.Append(0, state.range(0), RandomFloats(static_cast<size_t>(state.range(0) * 3 * 64), 1).data());
  const std::vector<float> query = RandomFloats(9 * 64, 2);
  std::vector<float> output(query.size());
  const int64_t shape[] = {1, 9, 64};
  const mneme_tensor query_tensor = {
      const_cast<float*>(query.data()), MNEME_DTYPE_F32, MNEME_DEVICE_CPU, 0, 3, shape, nullptr};
  const mneme_tensor output_tensor = {output.data(), MNEME_DTYPE_F32, MNEME_DEVICE_CPU, 0, 3, shape, nullptr};
  mneme_attend_args args = MNEME_ATTEND_ARGS_INIT;
  args.query = &query_tensor;
  args.output = &output_tensor;
  args.default_top_k = 32;
  std::vector<double> times;
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    Check(mneme_attend(&engine.memory, 1, &args));
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  state.counters["best_us"] = times.front() * 1e6;
  state.counters["median_us"] = times[times.size() / 2] * 1e6;
}
BENCHMARK(AttendOverhead)->Unit(benchmark::kMicrosecond)->UseRealTime()->ArgName("N")->Arg(1)->Arg(64);

}  // namespace

void RegisterRecorded(const std::string& path) {
  benchmark::RegisterBenchmark(("AttendRecorded/" + std::filesystem::path(path).filename().string()).c_str(),
                               [path](benchmark::State& state) { AttendRecorded(state, path); })
      ->ArgName("threads")
      ->Arg(2)
      ->Unit(benchmark::kMillisecond)
      ->UseManualTime();
}

}  // namespace mneme

// mneme_engine_bench [flags of Google Benchmark] [recording of `mneme-llama record`]…
int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  for (int i = 1; i < argc; ++i) mneme::RegisterRecorded(argv[i]);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
