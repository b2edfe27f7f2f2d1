// SPDX-License-Identifier: Apache-2.0
// A step of training through the C ABI: mneme_attend and mneme_attend_backward by turns, with their times apart.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "benchmark/benchmark.h"
#include "mneme.h"

#include "bench/host.h"
#include "bench/micro/engine.h"
#include "bench/random_floats.h"

namespace mneme {
namespace {

template <typename Run>
double Seconds(const Run& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double Median(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

// `queries` new tokens attend to k rows of a memory of N and, causally, to themselves and as many local rows before
// them. All tensors are f32. N 0: without a memory's rows.
void AttendBackward(benchmark::State& state) {
  const int64_t tokens = state.range(0), queries = state.range(5), local_rows = 2 * queries;
  const auto group = static_cast<int>(state.range(1)), dim = static_cast<int>(state.range(2));
  const auto kv_heads = static_cast<int>(state.range(3)), threads = static_cast<int>(state.range(4));
  const int q_heads = kv_heads * group;
  Engine engine(1, q_heads, kv_heads, dim, threads, MNEME_DTYPE_F16);
  for (int64_t done = 0; done < tokens; done += 4096) {
    const int64_t n = std::min<int64_t>(4096, tokens - done);
    const std::vector<float> rows =
        RandomFloats(static_cast<size_t>(n * kv_heads * dim), static_cast<unsigned>(done + 1));
    engine.Append(0, n, rows.data());
  }
  const int64_t query_shape[] = {queries, q_heads, dim}, local_shape[] = {local_rows, kv_heads, dim};
  const auto query_floats = static_cast<size_t>(queries * q_heads * dim);
  const auto local_floats = static_cast<size_t>(local_rows * kv_heads * dim);
  const std::vector<float> query = RandomFloats(query_floats, 2), upstream = RandomFloats(query_floats, 3);
  const std::vector<float> keys = RandomFloats(local_floats, 4), values = RandomFloats(local_floats, 5);
  std::vector<float> output(query_floats), query_gradient(query_floats);
  std::vector<float> keys_gradient(local_floats), values_gradient(local_floats);
  const auto query_like = [&](const std::vector<float>& data) {
    return mneme_tensor_contiguous(data.data(), MNEME_DTYPE_F32, 3, query_shape);
  };
  const auto local_like = [&](const std::vector<float>& data) {
    return mneme_tensor_contiguous(data.data(), MNEME_DTYPE_F32, 3, local_shape);
  };
  const mneme_tensor query_view = query_like(query), output_view = query_like(output);
  const mneme_tensor upstream_view = query_like(upstream), query_gradient_view = query_like(query_gradient);
  const mneme_tensor keys_view = local_like(keys), values_view = local_like(values);
  const mneme_tensor keys_gradient_view = local_like(keys_gradient), values_gradient_view = local_like(values_gradient);
  std::vector<int64_t> retrieved(static_cast<size_t>(queries * q_heads * 32));
  std::vector<float> gate_gradient(static_cast<size_t>(q_heads));
  mneme_attend_args attend = MNEME_ATTEND_ARGS_INIT;
  attend.query = &query_view;
  attend.local_keys = &keys_view;
  attend.local_values = &values_view;
  attend.fusion = MNEME_FUSION_GATED;
  attend.output = &output_view;
  attend.retrieved_tokens = retrieved.data();
  attend.retrieved_stride = 32;
  mneme_attend_backward_args backward = MNEME_ATTEND_BACKWARD_ARGS_INIT;
  backward.attend = &attend;
  backward.output_gradient = &upstream_view;
  backward.query_gradient = &query_gradient_view;
  backward.local_keys_gradient = &keys_gradient_view;
  backward.local_values_gradient = &values_gradient_view;
  backward.gate_gradient = gate_gradient.data();
  std::vector<double> forward_times, backward_times;
  for (auto _ : state) {
    forward_times.push_back(Seconds([&] { Check(mneme_attend(&engine.memory, 1, &attend)); }));
    backward_times.push_back(Seconds([&] { Check(mneme_attend_backward(&engine.memory, 1, &backward)); }));
    state.SetIterationTime(forward_times.back() + backward_times.back());
  }
  state.counters["forward_ms"] = Median(forward_times) * 1e3;
  state.counters["backward_ms"] = Median(backward_times) * 1e3;
  state.counters["backward/forward"] = Median(backward_times) / Median(forward_times);
}

BENCHMARK(AttendBackward)
    ->ArgNames({"N", "G", "d", "heads", "threads", "queries"})
    ->Args({0, 3, 64, 3, 2, 512})
    ->Args({8192, 3, 64, 3, 2, 512})
    ->Args({65536, 3, 64, 3, 2, 512})
    ->Args({0, 4, 128, 8, 2, 512})
    ->Args({8192, 4, 128, 8, 2, 512})
    ->Unit(benchmark::kMillisecond)
    ->UseManualTime();

}  // namespace
}  // namespace mneme
