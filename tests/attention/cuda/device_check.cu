// SPDX-License-Identifier: Apache-2.0
// Every kernel on a device, against the double-precision definition and against the emulator. Stands alone: no library
// but CUDA's runtime. Ends with 0 if all is well, 1 if not, 77 if there is no device.
//
//   device_check [--quick]     --quick: few and small cases, for compute-sanitizer

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention/cuda/attend.h"
#include "attention/cuda/device.h"
#include "attention/cuda/device_block.cuh"
#include "attention/cuda/device_rows.h"
#include "attention/cuda/runtime.h"
#include "attention/cuda/select-inl.h"
#include "tests/attention/cuda/attend_reference.h"
#include "tests/attention/cuda/device_place.h"
#include "tests/attention/cuda/emulated_append.h"
#include "tests/attention/cuda/emulator.h"

namespace mneme::cuda {
namespace {

void Expect(bool right, const std::string& what) {
  if (!right) throw std::runtime_error(what);
}

// ---- what the bodies ask of a block, on the device as in the emulator

struct LaneWork {
  float c[4];
  uint32_t a[4], b[2];
};

template <Product kProduct>
__global__ void MultiplyKernel(LaneWork* lanes) {
  DeviceBlock<1> block;
  LaneWork work = lanes[block.lane()];
  block.Multiply<kProduct>(work.c, work.a, work.b);
  lanes[block.lane()] = work;
}

template <Product kProduct>
void CheckMultiply(DType type) {
  std::mt19937 random(1);
  std::vector<LaneWork> lanes(kLanes);
  const auto whole = [&] { return static_cast<float>(static_cast<int>(random() % 17) - 8); };
  const auto pair = [&] {
    return static_cast<uint32_t>(Narrow(type, whole())) | static_cast<uint32_t>(Narrow(type, whole())) << 16;
  };
  for (LaneWork& lane : lanes) {
    for (float& c : lane.c) c = whole();
    for (uint32_t& a : lane.a) a = pair();
    for (uint32_t& b : lane.b) b = pair();
  }
  std::vector<LaneWork> expected = lanes;
  RunGrid<1>(1, 1, 1, 0, 1, [&](EmulatedBlock<1>& block) {
    LaneWork& work = expected[static_cast<size_t>(block.lane())];
    block.Multiply<kProduct>(work.c, work.a, work.b);
  });
  DevicePlace place;
  LaneWork* const data = place.Output(lanes);
  MultiplyKernel<kProduct><<<1, kLanes>>>(data);
  Check(cudaDeviceSynchronize(), "MultiplyKernel");
  place.Fetch();
  for (int l = 0; l < kLanes; ++l) {
    for (int i = 0; i < 4; ++i) {
      Expect(lanes[static_cast<size_t>(l)].c[i] == expected[static_cast<size_t>(l)].c[i],
             "lane " + std::to_string(l) + " score " + std::to_string(i));
    }
  }
}

void Multiply() {
  CheckMultiply<Product::kF16>(DType::kF16);
  CheckMultiply<Product::kBF16>(DType::kBF16);
}

__global__ void ExchangeKernel(uint32_t* wrong) {
  DeviceBlock<2> block;
  const auto lane = static_cast<uint32_t>(block.lane());
  if (block.WarpSum(lane) != 496u) atomicAdd(wrong, 1u);
  if (block.ShuffleXor(static_cast<float>(lane), 5) != static_cast<float>(lane ^ 5u)) atomicAdd(wrong, 1u);
  if (block.ShuffleXor(uint64_t{1} << 40 | lane, 16) != (uint64_t{1} << 40 | (lane ^ 16u))) atomicAdd(wrong, 1u);
  if (!block.SyncOr(block.thread() == 40) || block.SyncOr(false)) atomicAdd(wrong, 1u);
  if (WarpSumOf(block, 1.0f) != 32.0f) atomicAdd(wrong, 1u);
  if (WarpGreatestOf(block, static_cast<float>(lane % 13u)) != 12.0f) atomicAdd(wrong, 1u);
}

void Exchanges() {
  std::vector<uint32_t> wrong(1, 0);
  DevicePlace place;
  uint32_t* const data = place.Output(wrong);
  ExchangeKernel<<<1, 64>>>(data);
  Check(cudaDeviceSynchronize(), "ExchangeKernel");
  place.Fetch();
  Expect(wrong[0] == 0, std::to_string(wrong[0]) + " wrong results");
}

__global__ void ElementKernel(const float* values, int64_t n, uint16_t* f16, uint16_t* bf16, float* wide) {
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    f16[i] = F32ToF16(values[i]);
    bf16[i] = F32ToBF16(values[i]);
    wide[i] = F16ToF32(f16[i]);
  }
}

// The device rounds as the host does.
void Elements() {
  std::mt19937 random(2);
  std::vector<float> values;
  for (int i = 0; i < 100000; ++i) {
    const float value = FloatOf(static_cast<uint32_t>(random()));
    if (value == value) values.push_back(value);
  }
  for (int i = 0; i < 100000; ++i) values.push_back(std::normal_distribution<float>(0, 1e-4f)(random));
  std::vector<uint16_t> f16(values.size()), bf16(values.size());
  std::vector<float> wide(values.size());
  DevicePlace place;
  const float* const in = place.Input(values);
  uint16_t* const a = place.Output(f16);
  uint16_t* const b = place.Output(bf16);
  float* const c = place.Output(wide);
  ElementKernel<<<1, 256>>>(in, static_cast<int64_t>(values.size()), a, b, c);
  Check(cudaDeviceSynchronize(), "ElementKernel");
  place.Fetch();
  for (size_t i = 0; i < values.size(); ++i) {
    Expect(f16[i] == F32ToF16(values[i]), "f16 of " + std::to_string(values[i]));
    Expect(bf16[i] == F32ToBF16(values[i]), "bf16 of " + std::to_string(values[i]));
    Expect(BitsOf(wide[i]) == BitsOf(F16ToF32(f16[i])), "f32 of f16 " + std::to_string(f16[i]));
  }
}

// ---- attend

AttendAnswer OnDevice(const AttendCase& c, int repeats, bool with_graph) {
  DevicePlace place;
  AttendAnswer answer;
  const AttendProblem problem = Placed(c, place, answer);
  AttendPlan plan;
  Check(Prepare(problem, c.bounds, &plan));
  void* const workspace = place.Allocate(static_cast<size_t>(plan.workspace_bytes));
  Check(cudaMemset(workspace, 0xF7, static_cast<size_t>(plan.workspace_bytes)), "workspace");
  Stream stream;
  Check(cudaDeviceSynchronize(), "setting up");
  if (with_graph) {
    cudaGraph_t graph;
    cudaGraphExec_t ready;
    Check(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal), "capture");
    Check(Attend(problem, plan, workspace, stream.get()));
    Check(cudaStreamEndCapture(stream.get(), &graph), "capture");
    Check(cudaGraphInstantiate(&ready, graph, 0), "graph");
    for (int i = 0; i < repeats; ++i) Check(cudaGraphLaunch(ready, stream.get()), "replay");
    stream.Wait();
    cudaGraphExecDestroy(ready);
    cudaGraphDestroy(graph);
  } else {
    for (int i = 0; i < repeats; ++i) Check(Attend(problem, plan, workspace, stream.get()));
    stream.Wait();
  }
  place.Fetch();
  return answer;
}

bool Same(const AttendAnswer& a, const AttendAnswer& b) {
  const auto same = [](const std::vector<float>& x, const std::vector<float>& y) {
    return x.size() == y.size() && (x.empty() || std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0);
  };
  return a.found == b.found && a.output == b.output && same(a.found_logits, b.found_logits) &&
         same(a.log_sum_exp, b.log_sum_exp) && same(a.memory_share, b.memory_share);
}

void Cases(uint32_t seed, int count, const CaseLimits& limits) {
  std::mt19937 random(seed);
  AttendErrors errors;
  for (int i = 0; i < count; ++i) {
    const AttendCase c = RandomCase(random, limits);
    const AttendAnswer answer = OnDevice(c, 1, false);
    const std::string wrong = Compare(c, answer, 8, &errors);
    Expect(wrong.empty(),
           "seed " + std::to_string(seed) + " case " + std::to_string(i) + " (" + c.Description() + "): " + wrong);
  }
  std::printf("      %d cases; greatest error by its bound: output %.3f, log-sum-exp %.3f, logit %.3f\n", count,
              errors.output, errors.log_sum_exp, errors.logit);
}

CaseLimits Limits(bool quick, bool exact) {
  CaseLimits limits;
  if (!quick) {
    limits.memory_rows = 9000;
    limits.local_rows = 700;
    limits.queries = 40;
    limits.batch = 5;
  }
  limits.exact = exact;
  return limits;
}

// One run's bits are every run's bits, in a graph, too.
void Repeats(bool quick) {
  std::mt19937 random(31);
  for (int i = 0; i < (quick ? 2 : 10); ++i) {
    const AttendCase c = RandomCase(random, Limits(quick, false));
    const AttendAnswer once = OnDevice(c, 1, false);
    Expect(Same(once, OnDevice(c, 5, false)), "five runs differ from one: " + c.Description());
    Expect(Same(once, OnDevice(c, 3, true)), "three replays of a graph differ from one run: " + c.Description());
  }
}

// ---- rows on the device

void Appends() {
  std::mt19937 random(41);
  for (int trial = 0; trial < 18; ++trial) {
    RowsShape shape;
    shape.kv_heads = 1 + trial % 3;
    shape.key_dim = 64 << trial % 3;
    shape.value_dim = 64 << (trial / 3) % 3;
    shape.type = std::vector<DType>{DType::kF16, DType::kBF16, DType::kI8}[static_cast<size_t>(trial % 3)];
    shape.capacity = 9000;
    const DType from = std::vector<DType>{DType::kF32, DType::kF16, DType::kBF16}[static_cast<size_t>(trial / 3 % 3)];
    DeviceBudget budget(DeviceRowsBytes(shape));
    std::unique_ptr<DeviceRows> rows, second;
    Check(DeviceRows::Create(shape, &budget, &rows));
    Expect(!DeviceRows::Create(shape, &budget, &second).empty(), "the budget is not kept");
    Stream stream;
    // The same appends by the emulated kernel, in host memory.
    const auto all = static_cast<size_t>(shape.kv_heads * shape.capacity);
    const auto each = static_cast<size_t>(ElementBytes(shape.type));
    std::vector<uint8_t> keys(all * static_cast<size_t>(shape.key_dim) * each),
        values(all * static_cast<size_t>(shape.value_dim) * each);
    std::vector<float> key_scales(all), value_scales(all);
    MemoryRows expected;
    expected.keys = keys.data();
    expected.values = values.data();
    expected.key_scales = key_scales.data();
    expected.value_scales = value_scales.data();
    expected.capacity = shape.capacity;
    for (const int64_t tokens : {int64_t{1}, int64_t{700}, int64_t{3}, int64_t{2500}}) {
      DevicePlace place;
      const bool on_device = random() % 2 == 0;
      RowsToAppend sources[2];
      std::vector<uint8_t> data[2];
      for (int v = 0; v < 2; ++v) {
        const int64_t dim = v == 1 ? shape.value_dim : shape.key_dim;
        const int64_t row = shape.kv_heads * dim + 8;
        data[v].resize(static_cast<size_t>(tokens * row * ElementBytes(from)));
        for (int64_t i = 0; i < tokens * row; ++i) {
          StoreElement(from, data[v].data(), i, std::normal_distribution<float>()(random));
        }
        sources[v] = {on_device ? place.Input(data[v]) : data[v].data(), from, on_device, row, dim};
        AppendArgs args;
        args.source = data[v].data();
        args.source_type = from;
        args.row_stride = row;
        args.head_stride = dim;
        args.heads = shape.kv_heads;
        args.dim = static_cast<int32_t>(dim);
        args.tokens = args.all_tokens = tokens;
        args.type = shape.type;
        args.values = v == 1;
        args.rows = &expected;
        EmulatedAppend(args, 1);
      }
      AdvanceEnd(&expected, tokens);
      Check(rows->Append(tokens, sources[0], sources[1], stream.get()));
      stream.Wait();
    }
    MemoryRows actual;
    Check(cudaMemcpy(&actual, rows->device(), sizeof(actual), cudaMemcpyDeviceToHost), "rows");
    Expect(actual.end == expected.end && rows->size() == expected.end, "end is " + std::to_string(actual.end));
    const auto equal = [&](const void* device, const void* host, size_t bytes, const char* what) {
      std::vector<uint8_t> copy(bytes);
      Check(cudaMemcpy(copy.data(), device, bytes, cudaMemcpyDeviceToHost), what);
      Expect(std::memcmp(copy.data(), host, bytes) == 0, std::string(what) + " differ from the emulated ones");
    };
    for (int32_t h = 0; h < shape.kv_heads; ++h) {
      const auto row = static_cast<size_t>(h * shape.capacity), used = static_cast<size_t>(expected.end);
      const size_t key = static_cast<size_t>(shape.key_dim) * each, value = static_cast<size_t>(shape.value_dim) * each;
      equal(static_cast<const char*>(actual.keys) + row * key, keys.data() + row * key, used * key, "keys");
      equal(static_cast<const char*>(actual.values) + row * value, values.data() + row * value, used * value, "values");
      if (shape.type == DType::kI8) {
        equal(actual.key_scales + row, &key_scales[row], used * 4, "key scales");
        equal(actual.value_scales + row, &value_scales[row], used * 4, "value scales");
      }
    }
    Check(rows->SetVisible(5, 100, 3, stream.get()));
    stream.Wait();
    Check(cudaMemcpy(&actual, rows->device(), sizeof(actual), cudaMemcpyDeviceToHost), "rows");
    Expect(actual.begin == 5 && actual.end == 100 && actual.pinned == 3, "SetVisible");
    rows.reset();
    Expect(budget.used() == 0, "bytes are not given back");
  }
}

// A captured step of decoding, append and attend, replayed: every replay sees one token more.
void GraphsFollowTheLength() {
  RowsShape shape;
  shape.key_dim = shape.value_dim = 64;
  shape.capacity = 3;
  DeviceBudget budget(int64_t{1} << 30);
  std::unique_ptr<DeviceRows> rows;
  Check(DeviceRows::Create(shape, &budget, &rows));
  DevicePlace place;
  const std::vector<uint16_t> row(64, F32ToF16(1.0f));
  const uint16_t* const token = place.Input(row);
  const RowsToAppend source{token, DType::kF16, true, 64, 64};
  std::vector<float> output(64), sum(1);
  AttendProblem p;
  p.tokens = p.batch = p.q_heads = p.kv_heads = 1;
  p.key_dim = p.value_dim = 64;
  p.top_k = 8;
  p.query = token;
  p.query_offsets = place.Input(std::vector<int64_t>{0, 1});
  p.memories = place.Keep(std::vector<const MemoryRows*>{rows->device()});
  p.output = place.Output(output);
  p.log_sum_exp = place.Output(sum);
  AttendPlan plan;
  Check(Prepare(p, AttendBounds{1, shape.capacity, 0}, &plan));
  void* const workspace = place.Allocate(static_cast<size_t>(plan.workspace_bytes));
  Stream stream;
  Check(cudaDeviceSynchronize(), "setting up");
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  Check(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal), "capture");
  Check(rows->Append(1, source, source, stream.get()));
  Check(Attend(p, plan, workspace, stream.get()));
  Check(cudaStreamEndCapture(stream.get(), &graph), "capture");
  Check(cudaGraphInstantiate(&ready, graph, 0), "graph");
  Expect(rows->size() == 0, "a capture counts as " + std::to_string(rows->size()) + " rows");
  for (int step = 1; step <= 5; ++step) {
    Check(cudaGraphLaunch(ready, stream.get()), "replay");
    stream.Wait();
    place.Fetch();
    const float expected = 64.0f + logf(static_cast<float>(step < 3 ? step : 3));  // there is room for three
    Expect(fabsf(sum[0] - expected) < 1e-4f,
           "step " + std::to_string(step) + ": log-sum-exp " + std::to_string(sum[0]));
    Expect(fabsf(output[9] - 1.0f) < 1e-5f, "step " + std::to_string(step) + ": output " + std::to_string(output[9]));
    Expect(rows->size() == 0, "a replay counts as " + std::to_string(rows->size()) + " rows");
  }
  // After SetVisible, an append outside of a graph finds no room; after a cut there is room again.
  Check(rows->SetVisible(0, 3, 0, stream.get()));
  Expect(rows->size() == 3 && !rows->Append(1, source, source, stream.get()).empty(), "full rows take one more");
  Check(rows->SetVisible(0, 1, 0, stream.get()));
  Check(rows->Append(2, source, source, stream.get()));
  stream.Wait();
  MemoryRows last;
  Check(cudaMemcpy(&last, rows->device(), sizeof(last), cudaMemcpyDeviceToHost), "rows");
  Expect(rows->size() == 3 && last.end == 3, "not three rows, but " + std::to_string(last.end));
  cudaGraphExecDestroy(ready);
  cudaGraphDestroy(graph);
}

// ---- what the engine asks of a device

void RuntimeKeepsItsWord() {
  std::unique_ptr<Runtime> runtime, none;
  Check(OpenRuntime(0, &runtime));
  Expect(!OpenRuntime(DeviceCount(), &none).empty() && none == nullptr, "a device is opened that is not there");
  int before = -1, after = -1;
  Check(cudaGetDevice(&before), "current device");
  void *first = nullptr, *second = nullptr, *event = nullptr, *host = nullptr, *a = nullptr, *b = nullptr;
  Check(runtime->NewStream(&first));
  Check(runtime->NewStream(&second));
  Check(runtime->NewEvent(&event));
  Expect(runtime->Done(event), "an event that stands for nothing is not done");
  // 64 rows of 1,000 bytes: to a pitch of 1,280 on one stream, to one of 1,024 on another, back to the host on the
  // first.
  constexpr int64_t kRows = 64, kBytes = 1000;
  Check(runtime->AllocateHost(2 * kRows * kBytes, &host));
  auto* const bytes = static_cast<uint8_t*>(host);
  for (int64_t i = 0; i < kRows * kBytes; ++i) bytes[i] = static_cast<uint8_t>(i * 31 + i / 251);
  std::memset(bytes + kRows * kBytes, 0, kRows * kBytes);
  for (int round = 0; round < 20; ++round) {
    Check(runtime->Allocate(kRows * 1280, first, &a));
    Check(runtime->Allocate(kRows * 1024, second, &b));
    Expect(reinterpret_cast<uintptr_t>(a) % 256 == 0 && reinterpret_cast<uintptr_t>(b) % 256 == 0, "alignment");
    Check(runtime->Copy({bytes, kBytes, a, 1280, kBytes, kRows}, first));
    Check(runtime->Record(event, first));
    Check(runtime->Wait(second, event));
    Check(runtime->Copy({a, 1280, b, 1024, kBytes, kRows}, second));
    Check(runtime->Record(event, second));
    Check(runtime->Wait(first, event));
    runtime->Free(a, first);
    Check(runtime->Copy({b, 1024, bytes + kRows * kBytes, kBytes, kBytes, kRows}, first));
    runtime->Free(b, first);
  }
  Check(runtime->Record(event, first));
  Check(runtime->Synchronise(event));
  Expect(runtime->Done(event), "what was waited for is not done");
  Expect(std::memcmp(bytes, bytes + kRows * kBytes, kRows * kBytes) == 0, "copies differ");
  bool captured = true;
  Check(runtime->IsCaptured(first, &captured));
  Expect(!captured, "a stream is captured");
  cudaGraph_t graph;
  Check(cudaStreamBeginCapture(static_cast<cudaStream_t>(first), cudaStreamCaptureModeThreadLocal), "capture");
  Check(runtime->IsCaptured(first, &captured));
  Expect(captured, "a stream is not captured");
  Check(cudaStreamEndCapture(static_cast<cudaStream_t>(first), &graph), "capture");
  if (graph != nullptr) cudaGraphDestroy(graph);

  std::mt19937 random(51);
  for (int i = 0; i < 5; ++i) {
    const AttendCase c = RandomCase(random, CaseLimits{});
    DevicePlace place;
    AttendAnswer answer;
    const AttendProblem problem = Placed(c, place, answer);
    Check(cudaDeviceSynchronize(), "setting up");
    if (c.pairs() == 0) continue;
    AttendPlan plan;
    void* workspace = nullptr;
    Check(runtime->Prepare(problem, c.bounds, &plan));
    Check(runtime->Allocate(Greatest<int64_t>(1, plan.workspace_bytes), first, &workspace));
    Check(runtime->Attend(problem, plan, workspace, first));
    runtime->Free(workspace, first);
    Check(runtime->Record(event, first));
    Check(runtime->Synchronise(event));
    place.Fetch();
    AttendErrors errors;
    const std::string wrong = Compare(c, answer, 8, &errors);
    Expect(wrong.empty(), c.Description() + ": " + wrong);
  }
  runtime->FreeHost(host);
  runtime->DeleteEvent(event);
  runtime->DeleteStream(first);
  runtime->DeleteStream(second);
  Check(cudaGetDevice(&after), "current device");
  Expect(before == after, "the current device is another");
}

int Main(bool quick) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device: cuda %s\n", Describe().c_str());
    return 77;
  }
  std::printf("cuda %s\n", Describe().c_str());
  const char* const wish = std::getenv("MNEME_TEST_SEED");
  const auto seed = wish == nullptr ? 1u : static_cast<uint32_t>(std::strtoul(wish, nullptr, 10));
  const struct {
    const char* name;
    std::function<void()> run;
  } checks[] = {
      {"the product's layout", Multiply},
      {"exchanges of a warp and a block", Exchanges},
      {"rounding", Elements},
      {"attend, exact logits and many ties: the very rows",
       [&] { Cases(seed + 1, quick ? 6 : 100, Limits(quick, true)); }},
      {"attend against the double-precision definition", [&] { Cases(seed, quick ? 10 : 150, Limits(quick, false)); }},
      {"the same bits each time, in graphs, too", [&] { Repeats(quick); }},
      {"appends from host and device", Appends},
      {"a captured step follows the length", GraphsFollowTheLength},
      {"streams, events, memory and copies as the engine uses them", RuntimeKeepsItsWord},
  };
  int failures = 0;
  for (const auto& check : checks) {
    try {
      check.run();
      std::printf("ok    %s\n", check.name);
    } catch (const std::exception& error) {
      std::printf("WRONG %s: %s\n", check.name, error.what());
      ++failures;
    }
    std::fflush(stdout);
  }
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace mneme::cuda

int main(int argc, char** argv) {
  return mneme::cuda::Main(argc > 1 && std::strcmp(argv[1], "--quick") == 0);
}
