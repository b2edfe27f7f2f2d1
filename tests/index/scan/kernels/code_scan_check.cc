// SPDX-License-Identifier: Apache-2.0
// Compares one set of code-scan kernels with the plain ones. It needs neither a library nor GoogleTest, so that kernels
// that this CPU lacks can be checked by emulation: AVX-512 through SIMDe's portable intrinsics, NEON under qemu-user.
// MNEME_CHECKED names the kernels, a variable of index/scan/code_scan_kernel.h; MNEME_NATIVE what this CPU must have,
// if they are not emulated.

#include <math.h>
#include <stdio.h>

#include <map>
#include <random>
#include <tuple>
#include <vector>

#include "index/scan/code_scan_kernel.h"
#include "index/scan/dot_bound.h"
#include "index/scan/query_codes.h"

namespace mneme::codes {
namespace {

// What kernels deliver for a (query, row).
struct Row {
  int32_t sum;
  float mean_dot;
  bool hit;
};
using Delivered = std::map<std::pair<int64_t, int64_t>, Row>;

// A HitCallback; context: a Delivered.
void Record(void* context, Query&, const BlockHits& hits) {
  for (int i = 0; i < kBlockRows; ++i) {
    (*static_cast<Delivered*>(context))[{hits.query, hits.first_row + i}] = {hits.sums[i], hits.mean_dot,
                                                                             (hits.rows >> i & 1) != 0};
  }
}

// The dot products of vectors side by side, against double precision.
bool CheckDots(std::mt19937& random) {
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (int64_t dim = 1; dim < 300; dim += 1 + static_cast<int64_t>(random() % 7)) {
    std::vector<float> vectors(static_cast<size_t>(dim * kQueryLanes)), others[kMeansPerCall];
    for (float& x : vectors) x = uniform(random);
    const float* pointers[kMeansPerCall];
    for (int m = 0; m < kMeansPerCall; ++m) {
      others[m].resize(static_cast<size_t>(dim));
      for (float& x : others[m]) x = uniform(random);
      pointers[m] = others[m].data();
    }
    float dots[kMeansPerCall * kQueryLanes];
    MNEME_CHECKED.dot_means(vectors.data(), pointers, dim, dots);
    for (int64_t i = 0; i < kMeansPerCall * kQueryLanes; ++i) {
      double exact = 0, vector2 = 0, other2 = 0;
      for (int64_t d = 0; d < dim; ++d) {
        const double a = vectors[static_cast<size_t>(d * kQueryLanes + i % kQueryLanes)];
        const double b = others[i / kQueryLanes][static_cast<size_t>(d)];
        exact += a * b;
        vector2 += a * a;
        other2 += b * b;
      }
      const double allowed = static_cast<double>(dim) * 0x1p-24 * sqrt(vector2 * other2);
      if (fabs(static_cast<double>(dots[i]) - exact) <= allowed) continue;
      printf("FAILED: dim %d, vector %d of the others, lane %d: dot product %.9g, expected %.9g within %g\n",
             static_cast<int>(dim), static_cast<int>(i / kQueryLanes), static_cast<int>(i % kQueryLanes),
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
    std::vector<float> mean_dots(static_cast<size_t>(4 * stride));
    for (float& mean_dot : mean_dots) mean_dot = uniform(random) - 0.5f;
    std::vector<BlockHeader> memory(static_cast<size_t>(blocks * BlockBytes(dim)) / sizeof(BlockHeader));
    auto* const bytes = reinterpret_cast<char*>(memory.data());
    for (int64_t b = 0; b < blocks; ++b) {
      char* block = bytes + b * BlockBytes(dim);
      BlockHeader header = {};
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
    const int narrow = MNEME_CHECKED.max_int16_sum;
    const int greatest = narrow != 0 ? narrow / 8 : kMaxQueryValue;
    const bool extreme = round % 5 == 0;
    std::vector<int8_t> values(static_cast<size_t>(dim)), plain(static_cast<size_t>(n * dim)),
        packed(plain.size() * static_cast<size_t>(MNEME_CHECKED.value_copies));
    std::vector<Query> queries(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      int32_t sum = 0;
      for (int8_t& value : values) {
        const auto any = static_cast<int>(random() % (2u * static_cast<uint32_t>(greatest) + 1)) - greatest;
        value = static_cast<int8_t>(!extreme ? any : i % 2 == 0 ? greatest : -greatest);
        sum += value;
      }
      PackQueryValues(kPlainKernels, values.data(), i, n, dim, plain.data());
      PackQueryValues(MNEME_CHECKED, values.data(), i, n, dim, packed.data());
      const float step = 0.001f + 0.01f * uniform(random);
      const float spread = step * 20.0f * 36.0f * sqrtf(static_cast<float>(dim));
      Query& query = queries[static_cast<size_t>(i)];
      query.start = -kZeroCode * sum;
      query.step = step;
      query.inverse_step = 1 / step;
      query.error_weight = uniform(random);
      query.norm_weight = uniform(random);
      query.min_dot = (2 * uniform(random) - 0.5f) * spread * static_cast<float>(greatest) / kMaxQueryValue;
    }
    Delivered expected, actual;
    const int64_t prefetch_bytes = round % 2 == 0 ? 0 : 5 * BlockBytes(dim);
    std::vector<Query> copy = queries;
    const BlockSpan span{.blocks = bytes,
                         .count = blocks,
                         .first_row = 160,
                         .prefetch_bytes = prefetch_bytes,
                         .mean_dots = mean_dots.data(),
                         .mean_dot_stride = stride};
    kPlainKernels.scan(span, dim, plain.data(), copy.data(), n, &Record, &expected);
    MNEME_CHECKED.scan(span, dim, packed.data(), queries.data(), n, &Record, &actual);
    for (int64_t i = 0; i < n; ++i) {
      const Query& query = queries[static_cast<size_t>(i)];
      for (int64_t row = 160; row < 160 + blocks * kBlockRows; ++row) {
        const auto e = expected.find({i, row}), a = actual.find({i, row});
        const bool expected_hit = e != expected.end() && e->second.hit;
        const bool actual_hit = a != actual.end() && a->second.hit;
        ++compared;
        passed += actual_hit;
        const float mean_dot = mean_dots[static_cast<size_t>(row / (kBlockRows * kChunkBlocks) * stride + i)];
        if (actual_hit && a->second.mean_dot != mean_dot) {
          printf("FAILED: round %d row %d: mean_dot %g, expected %g\n", round, static_cast<int>(row),
                 static_cast<double>(a->second.mean_dot), static_cast<double>(mean_dot));
          return 1;
        }
        if (expected_hit && actual_hit && e->second.sum != a->second.sum) {
          printf("FAILED: round %d row %d: sum %d, expected %d\n", round, static_cast<int>(row), a->second.sum,
                 e->second.sum);
          return 1;
        }
        if (expected_hit == actual_hit) continue;
        // Only rounding may decide differently.
        const auto* header = reinterpret_cast<const BlockHeader*>(bytes + (row - 160) / kBlockRows * BlockBytes(dim));
        int32_t sums[kBlockRows] = {};
        const auto r = static_cast<int>(row % kBlockRows);
        sums[r] = expected_hit ? e->second.sum : a->second.sum;
        const DotBound bound = BoundDot(
            query, {.query = i, .mean_dot = mean_dot, .first_row = row - r, .header = header, .sums = sums, .rows = 0},
            r);
        const float most = bound.estimate + bound.margin;
        if (fabsf(most - query.min_dot) > 1e-4f * (fabsf(query.min_dot) + 1)) {
          printf("FAILED: round %d dim %d query %d row %d: bound %g, min_dot %g\n", round, static_cast<int>(dim),
                 static_cast<int>(i), static_cast<int>(row), static_cast<double>(most),
                 static_cast<double>(query.min_dot));
          return 1;
        }
      }
    }
  }
  if (!CheckDots(random)) return 1;
  printf("%s: %lld rows compared with the plain kernels', %lld with hits\n", MNEME_CHECKED.name,
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
