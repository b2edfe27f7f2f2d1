// Holds one set of code kernels to the plain ones. It stands alone (no library, no GoogleTest), so that kernels which the
// CPU at hand lacks can be checked by emulation: AVX-512 through SIMDe's portable intrinsics, NEON under qemu-user.
// MNEME_CHECKED names the kernels, a variable of index/code_kernel.h.

#include <math.h>
#include <stdio.h>

#include <map>
#include <random>
#include <tuple>
#include <vector>

#include "index/code_kernel.h"

namespace mneme::codes {
namespace {

// What kernels told: of (query, row) the bound, and whether it was not below the gate.
using Told = std::map<std::pair<int64_t, int64_t>, std::pair<float, bool>>;

void Take(void* context, int64_t number, Query&, int64_t row, const float* most, uint32_t rows) {
  for (int i = 0; i < kBlockRows; ++i) {
    (*static_cast<Told*>(context))[{number, row + i}] = {most[i], (rows >> i & 1) != 0};
  }
}

int Check() {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform;
  int64_t compared = 0, passed = 0;
  for (int round = 0; round < 400; ++round) {
    const int64_t dim = 16 * (1 + static_cast<int64_t>(random() % 16));
    const int64_t blocks = 1 + static_cast<int64_t>(random() % 5), n = 1 + static_cast<int64_t>(random() % 19);
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
    // As the plain kernels want them, and as the checked ones do.
    std::vector<int8_t> values(static_cast<size_t>(n * dim)), packed(values.size());
    std::vector<Query> queries(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      int32_t sum = 0;
      for (int64_t d = 0; d < dim; ++d) {
        const int value = static_cast<int>(random() % (2u * static_cast<uint32_t>(MNEME_CHECKED.greatest_value) + 1)) -
                          MNEME_CHECKED.greatest_value;
        values[static_cast<size_t>(ValueAt(i, d, dim, n, kPlainKernels.group))] = static_cast<int8_t>(value);
        packed[static_cast<size_t>(ValueAt(i, d, dim, n, MNEME_CHECKED.group))] = static_cast<int8_t>(value);
        sum += value;
      }
      const float step = 0.001f + 0.01f * uniform(random);
      const float spread = step * 20.0f * 36.0f * sqrtf(static_cast<float>(dim));
      queries[static_cast<size_t>(i)] = {-kZeroCode * sum,
                                         step,
                                         1 / step,
                                         uniform(random) - 0.5f,
                                         uniform(random),
                                         uniform(random),
                                         (2 * uniform(random) - 0.5f) * spread};
    }
    // The saturating corner of 16-bit sums.
    if (round % 5 == 0) {
      for (size_t i = 0; i < values.size(); ++i) {
        values[i] = packed[i] = static_cast<int8_t>(MNEME_CHECKED.greatest_value);
      }
      for (Query& query : queries) query.start = -kZeroCode * static_cast<int32_t>(dim) * MNEME_CHECKED.greatest_value;
    }
    Told expected, actual;
    std::vector<Query> copy = queries;
    kPlainKernels.scan(bytes, blocks, 160, dim, values.data(), copy.data(), n, &Take, &expected);
    MNEME_CHECKED.scan(bytes, blocks, 160, dim, packed.data(), queries.data(), n, &Take, &actual);
    for (int64_t i = 0; i < n; ++i) {
      const Query& query = queries[static_cast<size_t>(i)];
      for (int64_t row = 160; row < 160 + blocks * kBlockRows; ++row) {
        const auto e = expected.find({i, row}), a = actual.find({i, row});
        const bool expected_there = e != expected.end() && e->second.second;
        const bool actual_there = a != actual.end() && a->second.second;
        ++compared;
        passed += actual_there;
        if (expected_there != actual_there) {
          // Only rounding may decide differently.
          const float most = expected_there ? e->second.first : a->second.first;
          if (fabsf(most - query.gate) > 1e-4f * (fabsf(query.gate) + 1)) {
            printf("FAILED: round %d dim %d query %d row %d: bound %g, gate %g\n", round, static_cast<int>(dim),
                   static_cast<int>(i), static_cast<int>(row), static_cast<double>(most),
                   static_cast<double>(query.gate));
            return 1;
          }
        } else if (actual_there && fabsf(e->second.first - a->second.first) > 1e-4f * (fabsf(e->second.first) + 1)) {
          printf("FAILED: round %d row %d: bound %g, expected %g\n", round, static_cast<int>(row),
                 static_cast<double>(a->second.first), static_cast<double>(e->second.first));
          return 1;
        }
      }
    }
  }
  printf("%s: %lld bounds compared with the plain kernels', %lld above their gates\n", MNEME_CHECKED.name,
         static_cast<long long>(compared), static_cast<long long>(passed));
  return passed > compared / 100 && passed < compared * 9 / 10 ? 0 : 1;
}

}  // namespace
}  // namespace mneme::codes

int main() { return mneme::codes::Check(); }
