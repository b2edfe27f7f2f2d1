// SPDX-License-Identifier: Apache-2.0
#include "index/scan/rotation.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "index/scan/coding_kernel.h"

namespace mneme {
namespace {

// Elements with a sign of their own; later ones are never flipped.
constexpr int64_t kSigns = 1024;

// Whether element i is flipped: one bit of splitmix64's finaliser.
bool IsFlipped(int64_t i) {
  auto x = static_cast<uint64_t>(i + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return (x >> 40 & 1) != 0;
}

// f32 [kSigns], -1 or 1. Never freed.
const float* Signs() {
  static const auto* const signs = [] {
    auto* table = new float[kSigns];
    for (int64_t i = 0; i < kSigns; ++i) table[i] = IsFlipped(i) ? -1.0f : 1.0f;
    return table;
  }();
  return signs;
}

}  // namespace

void Rotate(float* vector, int64_t dim) {
  codes::BestCodingKernels().rotate(vector, Signs(), std::min(dim, kSigns), dim);
}

void RotationWeights(int64_t dim, float* weights) {
  const float* const signs = Signs();
  for (int64_t begin = 0; begin < dim;) {
    const auto n = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(dim - begin)));
    const float scale = n < 4 ? 1.0f : static_cast<float>(1.0 / std::sqrt(static_cast<double>(n)));
    for (int64_t i = begin; i < begin + n; ++i) weights[i] = i < kSigns ? signs[i] * scale : scale;
    begin += n;
  }
}

}  // namespace mneme
