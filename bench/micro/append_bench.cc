// SPDX-License-Identifier: Apache-2.0
// The engine as a host sees it, through the C ABI: append, commit, write amplification. Beside an append stands what a
// memcpy of its bytes takes in the same run.

#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "benchmark/benchmark.h"
#include "mneme.h"

#include "bench/host.h"
#include "bench/micro/engine.h"
#include "bench/random_floats.h"

namespace mneme {
namespace {

constexpr int kTokens = 5000;

// Microseconds that copying `bytes` bytes takes, mean of kTokens copies, to where `place` says for each.
template <typename Place>
double CopyMicroseconds(size_t bytes, const Place& place) {
  const std::vector<char> from(bytes, 1);
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kTokens; ++i) {
    char* const to = place(i);
    std::memcpy(to, from.data(), bytes);
    benchmark::DoNotOptimize(to);
    benchmark::ClobberMemory();
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() * 1e6 / kTokens;
}

// One token for all of 30 layers (SmolLM2-135M's shape), without commit. Beside it a memcpy of its bytes: to one place
// again and again, and to memory that nobody has touched yet, which is where the rows of a growing memory go: the
// system's own part of that (a fault a page) is in it.
void AppendToken(benchmark::State& state) {
  constexpr int kLayers = 30;
  Engine engine(kLayers, 9, 3, 64, 1, MNEME_DTYPE_F16);
  const std::vector<float> rows = RandomFloats(3 * 64, 1);
  for (auto _ : state) {
    for (int layer = 0; layer < kLayers; ++layer) engine.Append(layer, 1, rows.data());
  }
  constexpr size_t kBytes = kLayers * 2 * 3 * 64 * 2;
  std::vector<char> to(kBytes);
  state.counters["memcpy_us"] = CopyMicroseconds(kBytes, [&](int) { return to.data(); });
  const auto fresh = std::make_unique_for_overwrite<char[]>(kTokens * kBytes);
  state.counters["fresh_memcpy_us"] =
      CopyMicroseconds(kBytes, [&](int i) { return fresh.get() + static_cast<size_t>(i) * kBytes; });
}
BENCHMARK(AppendToken)->Unit(benchmark::kMicrosecond)->Iterations(kTokens);

// Append and commit (buffered) in steps of `tokens`, 30 layers; write amplification is bytes written to disk over bytes
// appended.
void AppendCommit(benchmark::State& state) {
  constexpr int kLayers = 30;
  const int64_t step = state.range(0);
  Engine engine(kLayers, 9, 3, 64, 1, MNEME_DTYPE_F16);
  const std::vector<float> rows = RandomFloats(static_cast<size_t>(step * 3 * 64), 1);
  for (auto _ : state) {
    for (int layer = 0; layer < kLayers; ++layer) engine.Append(layer, step, rows.data());
    Check(mneme_memory_commit(engine.memory, MNEME_DURABILITY_BUFFERED, nullptr));
  }
  mneme_store_stats stats = MNEME_STORE_STATS_INIT;
  Check(mneme_store_get_stats(engine.store, &stats));
  const double payload = static_cast<double>(state.iterations() * step) * kLayers * 2 * 3 * 64 * 2;
  state.counters["write_amplification"] = static_cast<double>(stats.written_bytes) / payload;
  state.counters["MB/s"] = benchmark::Counter(payload / 1e6, benchmark::Counter::kIsRate);
}
BENCHMARK(AppendCommit)->Unit(benchmark::kMillisecond)->UseRealTime()->ArgName("tokens")->Arg(1)->Iterations(8192);
BENCHMARK(AppendCommit)->Unit(benchmark::kMillisecond)->UseRealTime()->ArgName("tokens")->Arg(512)->Iterations(48);

}  // namespace
}  // namespace mneme
