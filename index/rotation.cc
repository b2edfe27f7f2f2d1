#include "index/rotation.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace mneme {
namespace {

typedef float Four __attribute__((vector_size(16), aligned(4)));

Four LoadFour(const float* from) {
  Four values;
  std::memcpy(&values, from, sizeof(values));
  return values;
}

// Hadamard's transform of n values, n a power of two, scaled to be orthogonal.
void Transform(float* values, int64_t n) {
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(n)));
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
    Four v = LoadFour(values + i) * scale;
    v = v * Four{1, -1, 1, -1} + Four{v[1], v[0], v[3], v[2]};
    v = v * Four{1, 1, -1, -1} + Four{v[2], v[3], v[0], v[1]};
    std::memcpy(values + i, &v, sizeof(v));
  }
  for (int64_t half = 4; half < n; half *= 2) {
    for (int64_t begin = 0; begin < n; begin += 2 * half) {
      for (int64_t i = begin; i < begin + half; i += 4) {
        const Four a = LoadFour(values + i), b = LoadFour(values + i + half);
        const Four sum = a + b, difference = a - b;
        std::memcpy(values + i, &sum, sizeof(sum));
        std::memcpy(values + i + half, &difference, sizeof(difference));
      }
    }
  }
}

// Whether channel i is flipped: a bit of a number's well mixed square (splitmix64's finaliser).
bool Flipped(int64_t i) {
  auto x = static_cast<uint64_t>(i + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return (x >> 40 & 1) != 0;
}

}  // namespace

void Rotate(float* vector, int64_t dim) {
  constexpr int64_t kTable = 1024;
  static const auto* const signs = [] {
    auto* table = new float[kTable];
    for (int64_t i = 0; i < kTable; ++i) table[i] = Flipped(i) ? -1.0f : 1.0f;
    return table;
  }();
  for (int64_t i = 0; i < dim; ++i) vector[i] *= i < kTable ? signs[i] : 1.0f;
  for (int64_t begin = 0; begin < dim;) {
    const auto n = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(dim - begin)));
    Transform(vector + begin, n);
    begin += n;
  }
}

}  // namespace mneme
