// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BENCH_RANDOM_FLOATS_H_
#define MNEME_BENCH_RANDOM_FLOATS_H_

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace mneme {

// n standard normal numbers, the same for the same seed.
inline std::vector<float> RandomFloats(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& x : values) x = normal(random);
  return values;
}

}  // namespace mneme

#endif  // MNEME_BENCH_RANDOM_FLOATS_H_
