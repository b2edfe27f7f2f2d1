// SPDX-License-Identifier: Apache-2.0
// Local and retrieved attention and rotary embedding. Times are of one KV head on one thread. "bytes_per_second"
// counts key and value rows once, as stored; the local tensors are [rows, 8 heads, dim], as hosts keep them.
// Reading one head over and over keeps it in the caches; "layers" many copies taken in turn do not.

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "attention/local.h"
#include "attention/retrieved.h"
#include "attention/rotary.h"
#include "base/cpu.h"
#include "bench/random_floats.h"
#include "benchmark/benchmark.h"

namespace mneme {
namespace {

constexpr int64_t kHeads = 8;

std::vector<char> RandomElements(size_t n, DType dtype) {
  const std::vector<float> floats = RandomFloats(n, 5);
  std::vector<char> elements(n * DTypeSize(dtype));
  ConvertFromF32(floats.data(), dtype, elements.data(), n);
  return elements;
}

RowTensor View(const void* data, DType dtype, int64_t rows, int64_t dim) {
  RowTensor view;
  view.data = data;
  view.dtype = dtype;
  view.rows = rows;
  view.heads = kHeads;
  view.dim = dim;
  view.row_stride = kHeads * dim;
  view.head_stride = dim;
  return view;
}

// Arguments: type, queries, rows, dim, group, layers. The mask is causal and the queries are the newest rows.
void BM_AttendLocal(benchmark::State& state) {
  const auto dtype = static_cast<DType>(state.range(0));
  const int64_t queries = state.range(1), rows = state.range(2), dim = state.range(3), group = state.range(4);
  const int64_t layers = state.range(5);
  const auto elements = static_cast<size_t>(rows * kHeads * dim);
  const std::vector<char> keys = RandomElements(elements * static_cast<size_t>(layers), dtype);
  const std::vector<char> values = keys;
  const std::vector<float> query = RandomFloats(static_cast<size_t>(queries * group * dim), 5);
  const std::vector<float> scales(static_cast<size_t>(group), 1.0f / std::sqrt(static_cast<float>(dim)));
  std::vector<float> output(query.size()), log_sum_exp(static_cast<size_t>(queries * group));
  LocalProblem problem;
  problem.queries = query.data();
  problem.query_count = queries;
  problem.group = group;
  problem.row_count = rows;
  problem.mask.offset = rows - queries;
  problem.scales = scales.data();
  int64_t step = 0;
  for (auto _ : state) {
    const auto offset = static_cast<size_t>(step / kHeads % layers) * elements * DTypeSize(dtype);
    problem.keys = View(keys.data() + offset, dtype, rows, dim);
    problem.values = View(values.data() + offset, dtype, rows, dim);
    problem.head = layers == 1 ? 0 : step % kHeads;
    ++step;
    AttendLocal(problem, output.data(), log_sum_exp.data());
    benchmark::DoNotOptimize(output.data());
    benchmark::ClobberMemory();
  }
  state.SetLabel(std::string(DTypeName(dtype)) + " " + std::string(CpuTargetName(BestCpuTarget())));
  state.SetBytesProcessed(state.iterations() * 2 * rows * dim * static_cast<int64_t>(DTypeSize(dtype)));
  // Visible pairs of a query and a row, a product and a sum for keys and for values each.
  const double pairs =
      static_cast<double>(queries * group) * (static_cast<double>(rows) - 0.5 * static_cast<double>(queries - 1));
  state.counters["flops"] =
      benchmark::Counter(4 * pairs * static_cast<double>(dim), benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(BM_AttendLocal)
    ->ArgNames({"type", "queries", "rows", "dim", "group", "layers"})
    // Decode, in the caches and from RAM.
    ->Args({1, 1, 512, 64, 1, 1})
    ->Args({1, 1, 512, 64, 3, 1})
    ->Args({1, 1, 512, 64, 3, 64})
    ->Args({1, 1, 512, 128, 4, 1})
    ->Args({1, 1, 512, 128, 4, 32})
    ->Args({1, 1, 512, 128, 8, 1})
    ->Args({1, 1, 1024, 128, 8, 16})
    ->Args({1, 1, 1024, 256, 4, 8})
    ->Args({0, 1, 512, 64, 3, 1})
    ->Args({2, 1, 512, 64, 3, 1})
    // Prefill.
    ->Args({1, 512, 1024, 64, 3, 1})
    ->Args({1, 512, 1024, 128, 4, 1})
    ->Args({0, 512, 1024, 128, 1, 1})
    ->Unit(benchmark::kMicrosecond);

// Arguments: type, count, dim. Rows lie at random places of 64 MiB.
void BM_AttendRetrieved(benchmark::State& state) {
  const auto dtype = static_cast<DType>(state.range(0));
  const int64_t count = state.range(1), dim = state.range(2);
  const size_t bytes = RowBytes(dtype, dim);
  const size_t total = (size_t{64} << 20) / bytes;
  std::vector<char> rows(total * bytes);
  const std::vector<float> row = RandomFloats(static_cast<size_t>(dim), 5);
  for (size_t i = 0; i < total; ++i) EncodeRow(row.data(), dtype, rows.data() + i * bytes, dim);
  std::mt19937 random(6);
  std::uniform_int_distribution<size_t> any(0, total - 1);
  std::vector<const void*> pointers(1 << 16);
  for (const void*& pointer : pointers) pointer = rows.data() + any(random) * bytes;
  const std::vector<float> logits = RandomFloats(static_cast<size_t>(count), 5);
  std::vector<float> output(static_cast<size_t>(dim));
  size_t at = 0;
  for (auto _ : state) {
    if (at + static_cast<size_t>(count) > pointers.size()) at = 0;
    benchmark::DoNotOptimize(AttendRetrieved(logits.data(), pointers.data() + at, count, dtype, dim, output.data()));
    at += static_cast<size_t>(count);
    benchmark::ClobberMemory();
  }
  state.SetLabel(std::string(DTypeName(dtype)) + " " + std::string(CpuTargetName(BestCpuTarget())));
  state.SetBytesProcessed(state.iterations() * count * static_cast<int64_t>(bytes));
}
BENCHMARK(BM_AttendRetrieved)
    ->ArgNames({"type", "count", "dim"})
    ->ArgsProduct({{0, 1, 2, 3}, {32}, {64, 128}})
    ->Args({1, 32, 256})
    ->Args({1, 128, 128});

// Arguments: layout. Nine heads of 64 that share a position, as a layer of a small model has each token.
void BM_RotateHeads(benchmark::State& state) {
  Rotary rotary;
  rotary.layout = static_cast<RotaryLayout>(state.range(0));
  for (int i = 0; i < 32; ++i) rotary.inverse_frequencies.push_back(std::pow(1e4f, static_cast<float>(-i) / 32));
  std::vector<float> rows = RandomFloats(9 * 64, 5);
  double position = 0;
  for (auto _ : state) {
    const RotaryTurn turn = RotaryTurn::ByPosition(rotary, position);
    for (size_t head = 0; head < 9; ++head) turn.Apply(rows.data() + head * 64);
    position += 1;
    benchmark::ClobberMemory();
  }
}
BENCHMARK(BM_RotateHeads)->ArgName("layout")->Arg(1)->Arg(2);

}  // namespace
}  // namespace mneme
