// SPDX-License-Identifier: Apache-2.0
// What the fused kernels take on this device, beside what the device can do at all. One JSON object a line on standard
// output, for scripts/gpu-check.
//
//   attend_bench        ends with 77 if there is no device

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "attention/cuda/attend.h"
#include "attention/cuda/device_rows.h"
#include "tests/attention/cuda/device_place.h"

#if defined(MNEME_BENCH_CUBLAS)
#include <cublas_v2.h>
#endif

namespace mneme::cuda {
namespace {

// Numbers of about the spread of attention keys, by a hash of where they stand.
__global__ void FillKernel(uint16_t* data, int64_t n, uint32_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x) {
    uint64_t x = static_cast<uint64_t>(i) * 0x9E3779B97F4A7C15u + seed;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    // The sum of four uniform numbers: near enough to normal.
    float sum = 0.0f;
    for (int j = 0; j < 4; ++j) sum += static_cast<float>(x >> (16 * j) & 0xFFFFu) / 65536.0f - 0.5f;
    data[i] = F32ToF16(1.7f * sum);
  }
}
__global__ void FillBytesKernel(int8_t* data, float* scales, int64_t rows, int64_t dim, uint32_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < rows * dim;
       i += int64_t{gridDim.x} * blockDim.x) {
    uint64_t x = static_cast<uint64_t>(i) * 0x9E3779B97F4A7C15u + seed;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    data[i] = static_cast<int8_t>(x >> 33 & 0xFF);
    if (i % dim == 0) scales[i / dim] = 1.0f / 73.0f;
  }
}

// Median and least of `repeats` timings, each of `inner` replays of a graph of one call, in microseconds a call.
struct Timing {
  double median, least;
};
Timing Time(cudaStream_t stream, const std::function<void()>& call, int inner, int repeats) {
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  Check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < inner; ++i) call();
  Check(cudaStreamEndCapture(stream, &graph), "capture");
  Check(cudaGraphInstantiate(&ready, graph, 0), "graph");
  cudaEvent_t begin, end;
  Check(cudaEventCreate(&begin), "event");
  Check(cudaEventCreate(&end), "event");
  std::vector<double> times;
  for (int i = 0; i < repeats + 2; ++i) {
    Check(cudaEventRecord(begin, stream), "event");
    Check(cudaGraphLaunch(ready, stream), "graph");
    Check(cudaEventRecord(end, stream), "event");
    Check(cudaEventSynchronize(end), "wait");
    float milliseconds;
    Check(cudaEventElapsedTime(&milliseconds, begin, end), "event");
    if (i >= 2) times.push_back(1000.0 * static_cast<double>(milliseconds) / inner);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(ready);
  cudaGraphDestroy(graph);
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times.front()};
}

double CopyBandwidth(cudaStream_t stream) {
  DevicePlace place;
  constexpr size_t kBytes = size_t{1} << 30;
  void* const from = place.Allocate(kBytes);
  void* const to = place.Allocate(kBytes);
  Check(cudaMemset(from, 1, kBytes), "memset");
  const Timing t = Time(
      stream, [&] { Check(cudaMemcpyAsync(to, from, kBytes, cudaMemcpyDeviceToDevice, stream), "copy"); }, 4, 15);
  const double bytes_a_second = 2.0 * kBytes / (t.median * 1e-6);
  std::printf("{\"what\": \"copy\", \"terabytes_a_second\": %.3f}\n", bytes_a_second / 1e12);
  return bytes_a_second;
}

struct Shape {
  int32_t batch = 1, kv_heads = 8, group = 4, dim = 128, top_k = 32;
  int64_t rows = 65536, local_rows = 512, queries = 1;
  DType memory_type = DType::kF16;
};

// A problem with made-up rows, all on the device.
class Made {
 public:
  explicit Made(const Shape& shape) {
    problem.batch = shape.batch;
    problem.kv_heads = shape.kv_heads;
    problem.q_heads = shape.kv_heads * shape.group;
    problem.key_dim = problem.value_dim = shape.dim;
    problem.top_k = shape.top_k;
    problem.tokens = shape.batch * shape.queries;
    problem.memory_type = shape.memory_type;
    problem.output_type = DType::kF16;
    const int64_t pairs = problem.tokens * problem.q_heads;
    problem.query = Halves(pairs * shape.dim, 1);
    std::vector<int64_t> queries, locals;
    for (int32_t b = 0; b <= shape.batch; ++b) {
      queries.push_back(b * shape.queries);
      locals.push_back(b * shape.local_rows);
    }
    problem.query_offsets = place.Input(queries);
    std::vector<MemoryRows> memories;
    for (int32_t b = 0; b < shape.batch; ++b) {
      MemoryRows m;
      m.capacity = m.end = shape.rows;
      const int64_t rows = shape.kv_heads * shape.rows;
      if (shape.memory_type == DType::kI8) {
        m.keys = Bytes(rows, shape.dim, static_cast<uint32_t>(3 * b + 2), &m.key_scales);
        m.values = Bytes(rows, shape.dim, static_cast<uint32_t>(3 * b + 3), &m.value_scales);
      } else {
        m.keys = Halves(rows * shape.dim, static_cast<uint32_t>(3 * b + 2));
        m.values = Halves(rows * shape.dim, static_cast<uint32_t>(3 * b + 3));
      }
      memories.push_back(m);
    }
    const MemoryRows* const first = place.Keep(std::move(memories));
    std::vector<const MemoryRows*> pointers;
    for (int32_t b = 0; b < shape.batch; ++b) pointers.push_back(first + b);
    problem.memories = place.Keep(std::move(pointers));
    if (shape.local_rows > 0) {
      problem.local_offsets = place.Input(locals);
      const int64_t elements = shape.batch * shape.local_rows * shape.kv_heads * shape.dim;
      problem.local_keys = Halves(elements, 91);
      problem.local_values = Halves(elements, 92);
      problem.local_key_row_stride = problem.local_value_row_stride = shape.kv_heads * shape.dim;
      problem.local_key_head_stride = problem.local_value_head_stride = shape.dim;
    }
    const std::vector<float> scale(static_cast<size_t>(problem.q_heads), 1.0f / sqrtf(static_cast<float>(shape.dim)));
    problem.scale = place.Input(scale);
    problem.output = place.Allocate(static_cast<size_t>(pairs * shape.dim * 2));
    problem.log_sum_exp = static_cast<float*>(place.Allocate(static_cast<size_t>(pairs) * 4));
    problem.found = static_cast<int64_t*>(place.Allocate(static_cast<size_t>(pairs * shape.top_k) * 8));
    Check(Prepare(problem, AttendBounds{shape.queries, shape.rows, shape.local_rows}, &plan));
    workspace = place.Allocate(static_cast<size_t>(plan.workspace_bytes));
    Check(cudaDeviceSynchronize(), "filling");
  }

  AttendProblem problem;
  AttendPlan plan;
  void* workspace = nullptr;
  DevicePlace place;

 private:
  const uint16_t* Halves(int64_t n, uint32_t seed) {
    auto* const data = static_cast<uint16_t*>(place.Allocate(static_cast<size_t>(n) * 2));
    FillKernel<<<1024, 256>>>(data, n, seed);
    Check(cudaGetLastError(), "FillKernel");
    return data;
  }
  const int8_t* Bytes(int64_t rows, int64_t dim, uint32_t seed, const float** scales) {
    auto* const data = static_cast<int8_t*>(place.Allocate(static_cast<size_t>(rows * dim)));
    auto* const each = static_cast<float*>(place.Allocate(static_cast<size_t>(rows) * 4));
    FillBytesKernel<<<1024, 256>>>(data, each, rows, dim, seed);
    Check(cudaGetLastError(), "FillBytesKernel");
    *scales = each;
    return data;
  }
};

// Bytes that any exact search must read: the keys, and the scales of i8.
double KeyBytes(const Shape& s) {
  const double rows = static_cast<double>(s.batch) * s.kv_heads * static_cast<double>(s.rows);
  return rows * (s.memory_type == DType::kI8 ? s.dim + 4 : 2 * s.dim);
}

void Decode(const char* name, Shape shape, double copy, cudaStream_t stream) {
  size_t free = 0, total = 0;
  Check(cudaMemGetInfo(&free, &total), "memory");
  // Values lie there, too.
  while (shape.batch > 1 && 2.2 * KeyBytes(shape) > static_cast<double>(free)) shape.batch /= 2;
  Made made(shape);
  const Timing t = Time(
      stream, [&] { Check(Attend(made.problem, made.plan, made.workspace, stream)); }, shape.batch == 1 ? 20 : 3, 15);
  const double floor = KeyBytes(shape) / copy * 1e6;
  std::printf(
      "{\"what\": \"%s\", \"batch\": %d, \"rows\": %lld, \"kv_heads\": %d, \"group\": %d, \"dim\": %d, \"top_k\": %d, "
      "\"type\": \"%s\", \"local\": %lld, \"microseconds\": %.2f, \"least\": %.2f, \"floor\": %.2f, "
      "\"of_copy\": %.3f, \"ranges\": %d}\n",
      name, shape.batch, static_cast<long long>(shape.rows), shape.kv_heads, shape.group, shape.dim, shape.top_k,
      shape.memory_type == DType::kI8 ? "i8" : "f16", static_cast<long long>(shape.local_rows), t.median, t.least,
      floor, floor / t.median, made.plan.ranges);
  std::fflush(stdout);
}

// Search and attention of a prompt's block beside the bare product of its queries and all keys, f16 out.
void Prefill(Shape shape, cudaStream_t stream) {
  shape.queries = 512;
  shape.local_rows = 0;
  Made made(shape);
  const Timing t = Time(
      stream, [&] { Check(Attend(made.problem, made.plan, made.workspace, stream)); }, 1, 7);
  double product = 0;
#if defined(MNEME_BENCH_CUBLAS)
  {
    DevicePlace place;
    const int64_t columns = shape.queries * shape.group;
    const auto heads = static_cast<int64_t>(shape.kv_heads);
    auto* const keys = place.Allocate(static_cast<size_t>(heads * shape.rows * shape.dim * 2));
    auto* const queries = place.Allocate(static_cast<size_t>(heads * columns * shape.dim * 2));
    auto* const scores = place.Allocate(static_cast<size_t>(heads * columns * shape.rows * 2));
    FillKernel<<<1024, 256>>>(static_cast<uint16_t*>(keys), heads * shape.rows * shape.dim, 5);
    FillKernel<<<1024, 256>>>(static_cast<uint16_t*>(queries), heads * columns * shape.dim, 6);
    Check(cudaDeviceSynchronize(), "filling");
    cublasHandle_t cublas;
    if (cublasCreate(&cublas) != CUBLAS_STATUS_SUCCESS) throw std::runtime_error("cublasCreate");
    void* const scratch = place.Allocate(size_t{64} << 20);
    cublasSetStream(cublas, stream);
    cublasSetWorkspace(cublas, scratch, size_t{64} << 20);
    const float one = 1.0f, zero = 0.0f;
    const Timing bare = Time(
        stream,
        [&] {
          const cublasStatus_t status = cublasGemmStridedBatchedEx(
              cublas, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(shape.rows), static_cast<int>(columns), shape.dim,
              &one, keys, CUDA_R_16F, shape.dim, shape.rows * shape.dim, queries, CUDA_R_16F, shape.dim,
              columns * shape.dim, &zero, scores, CUDA_R_16F, static_cast<int>(shape.rows), columns * shape.rows,
              shape.kv_heads, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
          if (status != CUBLAS_STATUS_SUCCESS) throw std::runtime_error("cublasGemmStridedBatchedEx");
        },
        1, 7);
    product = bare.median;
    cublasDestroy(cublas);
  }
#endif
  std::printf(
      "{\"what\": \"prefill\", \"rows\": %lld, \"queries\": %lld, \"type\": \"%s\", \"microseconds\": %.1f, "
      "\"product\": %.1f}\n",
      static_cast<long long>(shape.rows), static_cast<long long>(shape.queries),
      shape.memory_type == DType::kI8 ? "i8" : "f16", t.median, product);
  std::fflush(stdout);
}

void Append(int64_t tokens, cudaStream_t stream) {
  RowsShape shape;
  shape.kv_heads = 8;
  shape.capacity = 1 << 20;
  DeviceBudget budget(int64_t{1} << 40);
  std::unique_ptr<DeviceRows> rows;
  Check(DeviceRows::Create(shape, &budget, &rows));
  DevicePlace place;
  const int64_t elements = tokens * shape.kv_heads * shape.key_dim;
  auto* const data = static_cast<uint16_t*>(place.Allocate(static_cast<size_t>(elements) * 2));
  FillKernel<<<64, 256>>>(data, elements, 7);
  Check(cudaDeviceSynchronize(), "filling");
  const RowsToAppend source{data, DType::kF16, true, shape.kv_heads * shape.key_dim, shape.key_dim};
  const Timing t = Time(
      stream,
      [&] {
        Check(rows->Append(tokens, source, source, stream));
        Check(rows->SetVisible(0, 0, 0, stream));
      },
      10, 15);
  std::printf("{\"what\": \"append\", \"tokens\": %lld, \"microseconds\": %.2f}\n", static_cast<long long>(tokens),
              t.median);
}

int Main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::fprintf(stderr, "no CUDA device\n");
    return 77;
  }
  Stream stream;
  const double copy = CopyBandwidth(stream.get());
  Shape one;
  Decode("G1", one, copy, stream.get());
  Shape eight = one;
  eight.group = 8;
  Decode("G1", eight, copy, stream.get());
  Shape bytes = one;
  bytes.memory_type = DType::kI8;
  Decode("G1", bytes, copy, stream.get());
  Shape long_one = one;
  long_one.rows = 1 << 20;
  Decode("G1", long_one, copy, stream.get());
  Shape wide = one;
  wide.top_k = 256;
  Decode("G1", wide, copy, stream.get());
  Shape many = one;
  many.batch = 64;
  Decode("G2", many, copy, stream.get());
  many.memory_type = DType::kI8;
  Decode("G2", many, copy, stream.get());
  Prefill(one, stream.get());
  Prefill(bytes, stream.get());
  Append(1, stream.get());
  Append(1024, stream.get());
  return 0;
}

}  // namespace
}  // namespace mneme::cuda

int main() {
  try {
    return mneme::cuda::Main();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "attend_bench: %s\n", error.what());
    return 1;
  }
}
