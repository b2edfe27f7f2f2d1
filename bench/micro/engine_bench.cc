// The engine as a host sees it, through the C ABI: decode and prefill layer-steps, append, commit, write amplification.
// Each figure stands beside what the machine does at best in the same run: its read bandwidth, its products of bytes,
// its memcpy.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "mneme.h"

#include "bench/host.h"
#include "bench/micro/dot_product_peak.h"
#include "bench/micro/read_bandwidth.h"
#include "bench/random_floats.h"

namespace mneme {
namespace {

// A store in a folder of its own with one memory of `layers` equal layers.
class Engine {
 public:
  Engine(int layers, int q_heads, int kv_heads, int dim, int threads, int dtype) : kv_heads_(kv_heads), dim_(dim) {
    mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
    options.threads = threads;
    Check(mneme_store_open(folder_.path().c_str(), &options, &store));
    memory = CreateMemory(store, layers, q_heads, kv_heads, dim, dtype);
  }

  ~Engine() {
    Check(mneme_memory_close(memory));
    Check(mneme_store_close(store));
  }

  // `tokens` random rows for one layer.
  void Append(int layer, int64_t tokens, const float* rows) {
    const int64_t shape[] = {tokens, kv_heads_, dim_};
    const mneme_tensor tensor = {const_cast<float*>(rows), MNEME_F32, MNEME_DEVICE_CPU, 0, 3, shape, nullptr};
    mneme_append_args args = MNEME_APPEND_ARGS_INIT;
    args.layer = layer;
    args.keys = args.values = &tensor;
    Check(mneme_append(memory, &args));
  }

  mneme_store* store = nullptr;
  mneme_memory* memory = nullptr;

 private:
  const TemporaryFolder folder_;
  const int kv_heads_;
  const int dim_;
};

// Of RAM that the machine can give without swapping; as many as one likes where it does not say.
int64_t AvailableBytes() {
  const int64_t kib = ProcField("/proc/meminfo", "MemAvailable");
  return kib < 0 ? std::numeric_limits<int64_t>::max() : kib * 1024;
}

// Of an element as it is stored.
constexpr int64_t kBytes[] = {/*MNEME_F32*/ 4, /*MNEME_F16*/ 2, /*MNEME_BF16*/ 2, /*MNEME_I8*/ 1};

// One layer-step: `queries` new tokens attend to N tokens of memory and 512 local rows, joint.
void Attend(benchmark::State& state) {
  const int64_t tokens = state.range(0);
  const auto group = static_cast<int>(state.range(1));
  const auto dim = static_cast<int>(state.range(2));
  const auto kv_heads = static_cast<int>(state.range(3));
  const auto threads = static_cast<int>(state.range(4));
  const int64_t queries = state.range(5);
  const double likeness = static_cast<double>(state.range(6)) / 100;
  const auto stored = static_cast<int>(state.range(7));
  constexpr int64_t kLocal = 512;
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
  // Sealed, as what a memory holds for long is.
  if (tokens > 0) Check(mneme_commit(engine.memory, MNEME_BUFFERED, nullptr));
  // Steps of a text: each query as like the one before as asked.
  constexpr size_t kSteps = 16;
  const auto floats = static_cast<size_t>(queries * q_heads * dim);
  std::vector<float> steps(kSteps * floats);
  for (size_t i = 0; i < steps.size(); ++i) {
    const auto news = static_cast<float>(std::sqrt(1 - likeness * likeness));
    steps[i] = i < floats ? normal(random) : static_cast<float>(likeness) * steps[i - floats] + news * normal(random);
  }
  std::vector<float> query(steps.begin(), steps.begin() + static_cast<long>(floats));
  std::vector<float> output(query.size());
  const std::vector<uint16_t> local(static_cast<size_t>(std::max(kLocal, queries) * kv_heads * dim), 0x3400);
  const int64_t query_shape[] = {queries, q_heads, dim};
  const int64_t local_shape[] = {std::max(kLocal, queries), kv_heads, dim};
  const mneme_tensor query_tensor = {
      const_cast<float*>(query.data()), MNEME_F32, MNEME_DEVICE_CPU, 0, 3, query_shape, nullptr};
  const mneme_tensor output_tensor = {output.data(), MNEME_F32, MNEME_DEVICE_CPU, 0, 3, query_shape, nullptr};
  const mneme_tensor local_tensor = {
      const_cast<uint16_t*>(local.data()), MNEME_F16, MNEME_DEVICE_CPU, 0, 3, local_shape, nullptr};
  mneme_attend_args args = MNEME_ATTEND_ARGS_INIT;
  args.query = &query_tensor;
  args.output = &output_tensor;
  args.local_keys = args.local_values = &local_tensor;
  args.default_top_k = state.range(8);
  const double code_bytes = static_cast<double>(tokens) * kv_heads * dim;
  // By turns with steps, so that each finds the caches full of the other's bytes.
  ReadRounds reading = ReadingOf(static_cast<size_t>(std::max(code_bytes, 1e6)), static_cast<size_t>(threads));
  std::vector<double> times;
  Check(mneme_attend(&engine.memory, 1, &args));
  mneme_store_stats_t before = MNEME_STORE_STATS_INIT;
  Check(mneme_store_stats(engine.store, &before));
  for (auto _ : state) {
    const size_t step = times.size() % kSteps;
    std::copy_n(steps.begin() + static_cast<long>(step * floats), floats, query.begin());
    reading.Round();
    const auto start = std::chrono::steady_clock::now();
    Check(mneme_attend(&engine.memory, 1, &args));
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    state.SetIterationTime(times.back());
  }
  mneme_store_stats_t after = MNEME_STORE_STATS_INIT;
  Check(mneme_store_stats(engine.store, &after));
  std::sort(times.begin(), times.end());
  const double best = times.front(), median = times[times.size() / 2];
  state.counters["best_ms"] = best * 1e3;
  state.counters["median_ms"] = median * 1e3;
  state.counters["keys"] = static_cast<double>(after.keys_checked - before.keys_checked) /
                           static_cast<double>(times.size()) / static_cast<double>(q_heads * queries);
  if (tokens > 0) {
    state.counters["read_GB/s"] = reading.Best() / 1e9;
    state.counters["of_codes"] = code_bytes / best / reading.Best();
    state.counters["of_codes_median"] = code_bytes / median / reading.Median();
    // Of the memory alone: the local rows' products are made in floats.
    const double products = static_cast<double>(queries * group) * code_bytes / best;
    state.counters["GMAC/s"] = products / 1e9;
    if (const double peak = DotProductPeak() * threads; peak > 0) {
      state.counters["peak_GMAC/s"] = peak / 1e9;
      state.counters["of_peak"] = products / peak;
    }
  }
}

// Each argument changed by itself from 65,536 tokens, G = 4, d = 128, 8 KV heads, one query, f16, k = 32; and what
// models ask for. like: how neighbouring queries correlate, in percent.
void AttendArguments(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"N", "G", "d", "heads", "threads", "queries", "like", "type", "k"});
  const auto add = [bench](int64_t tokens, int64_t group, int64_t dim, int64_t heads, int64_t threads, int64_t queries,
                           int64_t like, int64_t type = MNEME_F16, int64_t k = 32) {
    bench->Args({tokens, group, dim, heads, threads, queries, like, type, k});
  };
  add(0, 4, 128, 8, 2, 1, 0);
  add(0, 3, 64, 3, 1, 1, 0);
  for (const int64_t tokens : {1, 64}) add(tokens, 3, 64, 3, 1, 1, 0);
  for (const int64_t like : {90, 0}) add(4096, 4, 128, 8, 2, 1, like);
  for (const int64_t tokens : {16384, 262144}) add(tokens, 4, 128, 8, 2, 1, 0);
  for (const int64_t group : {1, 3, 4, 8}) add(65536, group, 128, 8, 2, 1, 90);
  for (const int64_t group : {4, 8}) add(65536, group, 128, 8, 2, 1, 0);
  for (const int64_t type : {MNEME_F32, MNEME_BF16, MNEME_I8}) add(65536, 4, 128, 8, 2, 1, 0, type);
  for (const int64_t k : {8, 128, 256}) add(65536, 4, 128, 8, 2, 1, 0, MNEME_F16, k);
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
    ->Args({1048576, 4, 128, 8, 2, 1, 0, MNEME_F16, 32})
    ->Iterations(40)
    ->Unit(benchmark::kMillisecond)
    ->UseManualTime();

// What a call costs by itself: a memory of one row, or of 64, and no local rows (SmolLM2-135M's shape, one thread).
void AttendOverhead(benchmark::State& state) {
  Engine engine(1, 9, 3, 64, 1, MNEME_F16);
  engine.Append(0, state.range(0), RandomFloats(static_cast<size_t>(state.range(0) * 3 * 64), 1).data());
  const std::vector<float> query = RandomFloats(9 * 64, 2);
  std::vector<float> output(query.size());
  const int64_t shape[] = {1, 9, 64};
  const mneme_tensor query_tensor = {
      const_cast<float*>(query.data()), MNEME_F32, MNEME_DEVICE_CPU, 0, 3, shape, nullptr};
  const mneme_tensor output_tensor = {output.data(), MNEME_F32, MNEME_DEVICE_CPU, 0, 3, shape, nullptr};
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

// One token for all of 30 layers (SmolLM2-135M's shape), without commit; and beside it a memcpy of its bytes.
void AppendToken(benchmark::State& state) {
  constexpr int kLayers = 30;
  Engine engine(kLayers, 9, 3, 64, 1, MNEME_F16);
  const std::vector<float> rows = RandomFloats(3 * 64, 1);
  for (auto _ : state) {
    for (int layer = 0; layer < kLayers; ++layer) engine.Append(layer, 1, rows.data());
  }
  std::vector<char> from(kLayers * 2 * 3 * 64 * 2), to(from.size());
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 1000; ++i) {
    std::memcpy(to.data(), from.data(), from.size());
    benchmark::DoNotOptimize(to.data());
    benchmark::ClobberMemory();
  }
  state.counters["memcpy_us"] =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() * 1e6 / 1000;
}
BENCHMARK(AppendToken)->Unit(benchmark::kMicrosecond)->Iterations(5000);

// Append and commit (buffered) in steps of `tokens`, 30 layers; write amplification is bytes written to disk over bytes
// appended.
void AppendCommit(benchmark::State& state) {
  constexpr int kLayers = 30;
  const int64_t step = state.range(0);
  Engine engine(kLayers, 9, 3, 64, 1, MNEME_F16);
  const std::vector<float> rows = RandomFloats(static_cast<size_t>(step * 3 * 64), 1);
  for (auto _ : state) {
    for (int layer = 0; layer < kLayers; ++layer) engine.Append(layer, step, rows.data());
    Check(mneme_commit(engine.memory, MNEME_BUFFERED, nullptr));
  }
  mneme_store_stats_t stats = MNEME_STORE_STATS_INIT;
  Check(mneme_store_stats(engine.store, &stats));
  const double payload = static_cast<double>(state.iterations() * step) * kLayers * 2 * 3 * 64 * 2;
  state.counters["write_amplification"] = static_cast<double>(stats.written_bytes) / payload;
  state.counters["MB/s"] = benchmark::Counter(payload / 1e6, benchmark::Counter::kIsRate);
}
BENCHMARK(AppendCommit)->Unit(benchmark::kMillisecond)->UseRealTime()->ArgName("tokens")->Arg(1)->Iterations(8192);
BENCHMARK(AppendCommit)->Unit(benchmark::kMillisecond)->UseRealTime()->ArgName("tokens")->Arg(512)->Iterations(48);

}  // namespace
}  // namespace mneme
