// SPDX-License-Identifier: Apache-2.0
#include "index/scan/rotation.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "base/cpu.h"

namespace mneme {
namespace {

#define MNEME_INLINE inline __attribute__((always_inline))

// Vectors of the plainest CPU, and of AVX2.
typedef float Four __attribute__((vector_size(16)));
typedef float Eight __attribute__((vector_size(32)));

// Sums and differences of what is `half` apart, a whole number of vectors.
template <typename Vector>
MNEME_INLINE void Combine(float* values, int64_t n, int64_t half) {
  constexpr int64_t kLanes = sizeof(Vector) / sizeof(float);
  for (int64_t begin = 0; begin < n; begin += 2 * half) {
    for (int64_t i = begin; i < begin + half; i += kLanes) {
      Vector a, b;
      std::memcpy(&a, values + i, sizeof(a));
      std::memcpy(&b, values + i + half, sizeof(b));
      const Vector sum = a + b, difference = a - b;
      std::memcpy(values + i, &sum, sizeof(sum));
      std::memcpy(values + i + half, &difference, sizeof(difference));
    }
  }
}

// What makes the transform of n values orthogonal.
float ScaleOf(int64_t n) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(n)));
}

// Hadamard's transform of n values, n a power of two, scaled to be orthogonal.
template <typename Vector>
MNEME_INLINE void Transform(float* values, int64_t n) {
  const float scale = ScaleOf(n);
  if (n < 4) {
    for (int64_t half = 1; half < n; half *= 2) {
      const float sum = values[0] + values[half], difference = values[0] - values[half];
      values[0] = sum * scale;
      values[half] = difference * scale;
    }
    return;
  }
  // Neighbours and next but one, inside a vector; then vectors with each other.
  for (int64_t i = 0; i < n; i += 4) {
    Four v;
    std::memcpy(&v, values + i, sizeof(v));
    v = v * scale;
    v = v * Four{1, -1, 1, -1} + Four{v[1], v[0], v[3], v[2]};
    v = v * Four{1, 1, -1, -1} + Four{v[2], v[3], v[0], v[1]};
    std::memcpy(values + i, &v, sizeof(v));
  }
  if (n > 4) Combine<Four>(values, n, 4);
  for (int64_t half = 8; half < n; half *= 2) Combine<Vector>(values, n, half);
}

// Whether channel i is flipped: a bit of a number's well mixed square (splitmix64's finaliser).
bool Flipped(int64_t i) {
  auto x = static_cast<uint64_t>(i + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return (x >> 40 & 1) != 0;
}

constexpr int64_t kTable = 1024;

const float* Signs() {
  static const auto* const signs = [] {
    auto* table = new float[kTable];
    for (int64_t i = 0; i < kTable; ++i) table[i] = Flipped(i) ? -1.0f : 1.0f;
    return table;
  }();
  return signs;
}

template <typename Vector>
MNEME_INLINE void RotateBy(float* vector, int64_t dim) {
  const float* const signs = Signs();
  const int64_t flipped = dim < kTable ? dim : kTable;
  for (int64_t i = 0; i < flipped; ++i) vector[i] *= signs[i];
  for (int64_t begin = 0; begin < dim;) {
    const auto n = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(dim - begin)));
    Transform<Vector>(vector + begin, n);
    begin += n;
  }
}

// The same sums by wider vectors: their bits do not depend on the CPU.
#if defined(__x86_64__)
__attribute__((target("avx2"))) void RotateAvx2(float* vector, int64_t dim) {
  RotateBy<Eight>(vector, dim);
}
#endif

}  // namespace

void Rotate(float* vector, int64_t dim) {
#if defined(__x86_64__)
  if (BestCpuTarget() >= CpuTarget::kAvx2) return RotateAvx2(vector, dim);
#endif
  RotateBy<Four>(vector, dim);
}

void RotationWeights(int64_t dim, float* weights) {
  const float* const signs = Signs();
  for (int64_t begin = 0; begin < dim;) {
    const auto n = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(dim - begin)));
    const float scale = n < 4 ? 1.0f : ScaleOf(n);
    for (int64_t i = begin; i < begin + n; ++i) weights[i] = i < kTable ? signs[i] * scale : scale;
    begin += n;
  }
}

}  // namespace mneme
