// SPDX-License-Identifier: Apache-2.0
// Holds one set of code kernels to the plain ones. It stands alone (no library, no GoogleTest), so that kernels which
// the CPU at hand lacks can be checked by emulation: AVX-512 through SIMDe's portable intrinsics, NEON under qemu-user.
// MNEME_CHECKED names the kernels, a variable of index/scan/code_kernel.h; MNEME_NATIVE what this CPU must have, if
// they are not emulated.

#include <math.h>
#include <stdio.h>

#include <map>
#include <random>
#include <tuple>
#include <vector>

#include "index/scan/code_kernel.h"

namespace mneme::codes {
namespace {

// What kernels told: of (query, row) the sum and the base, and whether it was not below the gate.
struct Row {
  int32_t sum;
  float base;
  bool there;
};
using Told = std::map<std::pair<int64_t, int64_t>, Row>;

void Take(void* context, int64_t number, Query&, float base, int64_t row, const Header&, const int32_t* sums,
          uint32_t rows) {
  for (int i = 0; i < kBlockRows; ++i) {
    (*static_cast<Told*>(context))[{number, row + i}] = {sums[i], base, (rows >> i & 1) != 0};
  }
}

// The dot products of vectors side by side, against double precision.
bool CheckDots(std::mt19937& random) {
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (int64_t dim = 1; dim < 300; dim += 1 + static_cast<int64_t>(random() % 7)) {
    std::vector<float> vectors(static_cast<size_t>(dim * kLanes)), others[kMeans];
    for (float& x : vectors) x = uniform(random);
    const float* pointers[kMeans];
    for (int m = 0; m < kMeans; ++m) {
      others[m].resize(static_cast<size_t>(dim));
      for (float& x : others[m]) x = uniform(random);
      pointers[m] = others[m].data();
    }
    float dots[kMeans * kLanes];
    MNEME_CHECKED.dots(vectors.data(), pointers, dim, dots);
    for (int64_t i = 0; i < kMeans * kLanes; ++i) {
      double exact = 0, vector2 = 0, other2 = 0;
      for (int64_t d = 0; d < dim; ++d) {
        const double a = vectors[static_cast<size_t>(d * kLanes + i % kLanes)];
        const double b = others[i / kLanes][static_cast<size_t>(d)];
        exact += a * b;
        vector2 += a * a;
        other2 += b * b;
      }
      const double allowed = static_cast<double>(dim) * 0x1p-24 * sqrt(vector2 * other2);
      if (fabs(static_cast<double>(dots[i]) - exact) <= allowed) continue;
      printf("FAILED: dim %d, vector %d of the others, lane %d: dot product %.9g, expected %.9g within %g\n",
             static_cast<int>(dim), static_cast<int>(i / kLanes), static_cast<int>(i % kLanes),
             static_cast<double>(dots[i]), exact, allowed);
      return false;
    }
  }
  return true;
}

int Check() {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform;
  int64_t compared = 0, passed = 0;
  for (int round = 0; round < 400; ++round) {
    const int64_t dim = 16 * (1 + static_cast<int64_t>(random() % 16));
    // Some of them of several chunks, whose means make different parts of the dot products.
    const int64_t blocks = 1 + static_cast<int64_t>(random() % (round % 4 == 0 ? 40 : 5));
    const int64_t n = 1 + static_cast<int64_t>(random() % 19);
    const int64_t stride = n + static_cast<int64_t>(random() % 3);
    std::vector<float> bases(static_cast<size_t>(4 * stride));
    for (float& base : bases) base = uniform(random) - 0.5f;
    std::vector<Header> memory(static_cast<size_t>(blocks * BlockBytes(dim)) / sizeof(Header));
    auto* const bytes = reinterpret_cast<char*>(memory.data());
    for (int64_t b = 0; b < blocks; ++b) {
      char* block = bytes + b * BlockBytes(dim);
      Header header = {};
      for (uint16_t& scale : header.inverse_scale) scale = static_cast<uint16_t>(0x3f80 + random() % 256);  // 1 to 4
      header.error = uniform(random);
      header.norm = uniform(random);
      __builtin_memcpy(block, &header, sizeof(header));
      for (int64_t i = 0; i < dim * kBlockRows; ++i) {
        block[static_cast<int64_t>(sizeof(header)) + i] = static_cast<char>(1 + random() % 127);
      }
    }
    // Of a tile's eight values that share a sum in the checked kernels, all are equal in some rounds, so that the sum
    // is the greatest that it may be; random ones keep their sums within the limit.
    const int narrow = MNEME_CHECKED.greatest_narrow_sum;
    const int greatest = narrow != 0 ? narrow / 8 : kGreatestValue;
    const bool extreme = round % 5 == 0;
    std::vector<int8_t> values(static_cast<size_t>(dim)), plain(static_cast<size_t>(n * dim)),
        packed(plain.size() * static_cast<size_t>(MNEME_CHECKED.copies));
    std::vector<Query> queries(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      int32_t sum = 0;
      for (int8_t& value : values) {
        const auto any = static_cast<int>(random() % (2u * static_cast<uint32_t>(greatest) + 1)) - greatest;
        value = static_cast<int8_t>(!extreme ? any : i % 2 == 0 ? greatest : -greatest);
        sum += value;
      }
      Pack(kPlainKernels, values.data(), i, n, dim, plain.data());
      Pack(MNEME_CHECKED, values.data(), i, n, dim, packed.data());
      const float step = 0.001f + 0.01f * uniform(random);
      const float spread = step * 20.0f * 36.0f * sqrtf(static_cast<float>(dim));
      Query& query = queries[static_cast<size_t>(i)];
      query.start = -kZeroCode * sum;
      query.step = step;
      query.inverse_step = 1 / step;
      query.error_weight = uniform(random);
      query.norm_weight = uniform(random);
      query.gate = (2 * uniform(random) - 0.5f) * spread * static_cast<float>(greatest) / kGreatestValue;
    }
    Told expected, actual;
    const int64_t ahead = round % 2 == 0 ? 0 : 5 * BlockBytes(dim);
    std::vector<Query> copy = queries;
    const Span span{bytes, blocks, 160, ahead, bases.data(), stride};
    kPlainKernels.scan(span, dim, plain.data(), copy.data(), n, &Take, &expected);
    MNEME_CHECKED.scan(span, dim, packed.data(), queries.data(), n, &Take, &actual);
    for (int64_t i = 0; i < n; ++i) {
      const Query& query = queries[static_cast<size_t>(i)];
      for (int64_t row = 160; row < 160 + blocks * kBlockRows; ++row) {
        const auto e = expected.find({i, row}), a = actual.find({i, row});
        const bool expected_there = e != expected.end() && e->second.there;
        const bool actual_there = a != actual.end() && a->second.there;
        ++compared;
        passed += actual_there;
        const float base = bases[static_cast<size_t>(row / (kBlockRows * kChunkBlocks) * stride + i)];
        if (actual_there && a->second.base != base) {
          printf("FAILED: round %d row %d: base %g, expected %g\n", round, static_cast<int>(row),
                 static_cast<double>(a->second.base), static_cast<double>(base));
          return 1;
        }
        if (expected_there && actual_there && e->second.sum != a->second.sum) {
          printf("FAILED: round %d row %d: sum %d, expected %d\n", round, static_cast<int>(row), a->second.sum,
                 e->second.sum);
          return 1;
        }
        if (expected_there == actual_there) continue;
        // Only rounding may decide differently.
        const auto* header = reinterpret_cast<const Header*>(bytes + (row - 160) / kBlockRows * BlockBytes(dim));
        const Reach reach = ReachOf(query, base, *header, static_cast<int>(row % kBlockRows),
                                    expected_there ? e->second.sum : a->second.sum);
        const float most = reach.middle + reach.room;
        if (fabsf(most - query.gate) > 1e-4f * (fabsf(query.gate) + 1)) {
          printf("FAILED: round %d dim %d query %d row %d: bound %g, gate %g\n", round, static_cast<int>(dim),
                 static_cast<int>(i), static_cast<int>(row), static_cast<double>(most),
                 static_cast<double>(query.gate));
          return 1;
        }
      }
    }
  }
  if (!CheckDots(random)) return 1;
  printf("%s: %lld rows compared with the plain kernels', %lld above their gates\n", MNEME_CHECKED.name,
         static_cast<long long>(compared), static_cast<long long>(passed));
  return passed > compared / 100 && passed < compared * 9 / 10 ? 0 : 1;
}

}  // namespace
}  // namespace mneme::codes

int main() {
#ifdef MNEME_NATIVE
  if (__builtin_cpu_supports(MNEME_NATIVE) == 0) {
    printf("%s: not run, this CPU lacks them\n", mneme::codes::MNEME_CHECKED.name);
    return 77;
  }
#endif
  return mneme::codes::Check();
}
