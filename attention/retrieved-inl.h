// SPDX-License-Identifier: Apache-2.0
// Softmax over retrieved rows, which may lie anywhere in memory. The maximum is found first, so no sum is rescaled:
//   m = max_j logit_j     p_j = exp(logit_j - m)     output = sum_j p_j v_j / sum_j p_j     log_sum_exp = m + ln sum_j
//   p_j
// Rows are added in chunks with a sum of their own, which keeps the rounding error of long sums low.

#ifndef MNEME_ATTENTION_RETRIEVED_INL_H_
#define MNEME_ATTENTION_RETRIEVED_INL_H_

#include "attention/attend_kernel.h"
#include "attention/vector-inl.h"

namespace mneme {
namespace {

constexpr int64_t kRetrievedChunk = 64;

// The factor of a row's elements: for i8 the scale, which follows the elements, unaligned; else 1.
MNEME_INLINE float RowScale(DType dtype, const void* row, int64_t dim) {
  if (dtype != DType::kI8) return 1.0f;
  float scale;
  __builtin_memcpy(&scale, static_cast<const char*>(row) + dim, sizeof(scale));
  return scale;
}

template <typename Element, int kVectors>
MNEME_INLINE void AddRetrievedVectors(const float* weights, const void* const* rows, int64_t count, int64_t at,
                                      float* output) {
  Floats acc[kVectors] = {};
  for (int64_t j = 0; j < count; ++j) {
    const char* row = static_cast<const char*>(rows[j]) + at * Element::kBytes;
    const Floats weight = Broadcast(weights[j]);
    for (int v = 0; v < kVectors; ++v) acc[v] += weight * Element::Widen(row + v * kLanes * Element::kBytes);
  }
  for (int v = 0; v < kVectors; ++v) Store(Load(output + at + v * kLanes) + acc[v], output + at + v * kLanes);
}

template <typename Element>
inline void AddRetrieved(const float* weights, const void* const* rows, int64_t count, int64_t dim, float* output) {
  int64_t at = 0;
  for (; at + 8 * kLanes <= dim; at += 8 * kLanes) AddRetrievedVectors<Element, 8>(weights, rows, count, at, output);
  for (; at + kLanes <= dim; at += kLanes) AddRetrievedVectors<Element, 1>(weights, rows, count, at, output);
  if (at == dim) return;
  Floats acc = {};
  for (int64_t j = 0; j < count; ++j) {
    acc +=
        Broadcast(weights[j]) * WidenTail<Element>(static_cast<const char*>(rows[j]) + at * Element::kBytes, dim - at);
  }
  for (int64_t i = at; i < dim; ++i) output[i] += acc[static_cast<int>(i - at)];
}

// sum += the sum of weights[j] * rows[j], for at most kRetrievedChunk encoded rows. Changes the weights.
inline void AddChunk(float* weights, const void* const* rows, int64_t count, DType dtype, int64_t dim, float* sum) {
  for (int64_t j = 0; j < count; ++j) weights[j] *= RowScale(dtype, rows[j], dim);
  switch (dtype) {
    case DType::kF32: AddRetrieved<F32Element>(weights, rows, count, dim, sum); break;
    case DType::kF16: AddRetrieved<F16Element>(weights, rows, count, dim, sum); break;
    case DType::kBF16: AddRetrieved<BF16Element>(weights, rows, count, dim, sum); break;
    case DType::kI8: AddRetrieved<I8Element>(weights, rows, count, dim, sum); break;
  }
}

// weights [kRetrievedChunk] = exp(logit - base) for the `count` logits; 0 beyond them. Returns: their sum.
MNEME_INLINE float WeighChunk(const float* logits, int64_t count, float base, float* weights) {
  for (int64_t j = 0; j < kRetrievedChunk; ++j) weights[j] = j < count ? logits[j] : -kInfinity;
  Floats total = {};
  for (int64_t j = 0; j < kRetrievedChunk; j += kLanes) {
    const Floats part = Exp(Load(weights + j) - base);
    Store(part, weights + j);
    total += part;
  }
  return SumLanes(total);
}

// AttendKernels::attend_retrieved.
float AttendRetrievedRows(const RetrievedKernelArgs& args) {
  for (int64_t i = 0; i < args.value_dim; ++i) args.output[i] = 0;
  float greatest = -kInfinity;
  bool is_nan = false;
  for (int64_t j = 0; j < args.count; ++j) {
    is_nan |= args.logits[j] != args.logits[j];
    greatest = args.logits[j] > greatest ? args.logits[j] : greatest;
  }
  if (greatest == -kInfinity && !is_nan) return -kInfinity;
  const float base = greatest == -kInfinity ? 0.0f : greatest;
  float sum = 0;
  for (int64_t begin = 0; begin < args.count; begin += kRetrievedChunk) {
    const int64_t count = args.count - begin < kRetrievedChunk ? args.count - begin : kRetrievedChunk;
    const void* const* rows = args.value_rows + begin;
    alignas(64) float weights[kRetrievedChunk];
    sum += WeighChunk(args.logits + begin, count, base, weights);
    AddChunk(weights, rows, count, args.dtype, args.value_dim, args.output);
  }
  for (int64_t i = 0; i < args.value_dim; ++i) args.output[i] /= sum;
  return static_cast<float>(static_cast<double>(greatest) + __builtin_log(static_cast<double>(sum)));
}

// AttendKernels::add_rows.
void AddEncodedRows(const float* weights, const void* const* rows, int64_t count, DType dtype, int64_t dim,
                    float* sum) {
  for (int64_t begin = 0; begin < count; begin += kRetrievedChunk) {
    const int64_t n = count - begin < kRetrievedChunk ? count - begin : kRetrievedChunk;
    alignas(64) float chunk[kRetrievedChunk];
    for (int64_t j = 0; j < n; ++j) chunk[j] = weights[begin + j];
    AddChunk(chunk, rows + begin, n, dtype, dim, sum);
  }
}

}  // namespace
}  // namespace mneme

#endif  // MNEME_ATTENTION_RETRIEVED_INL_H_
