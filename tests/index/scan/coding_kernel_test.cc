// SPDX-License-Identifier: Apache-2.0
#include "index/scan/coding_kernel.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "base/cpu.h"
#include "index/scan/rotation.h"

namespace mneme::codes {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<const CodingKernels*> AllKernels() {
  std::vector<const CodingKernels*> all = {&kPlainCodingKernels};
#if defined(__x86_64__)
  if (CpuHas(CpuTarget::kAvx2)) all.push_back(&kAvx2CodingKernels);
  if (CpuHas(CpuTarget::kAvx512)) all.push_back(&kAvx512CodingKernels);
#endif
  return all;
}

struct Row {
  uint16_t inverse_scale = 0;
  float error = 0;
  float norm = 0;
  std::vector<uint8_t> code;
};

// Codes a single key as docs/design/scan.md says: rotates, then rounds, with sums in sixteen parts.
Row CodeOf(std::vector<float> key, const float* mean, int64_t dim) {
  for (int64_t i = 0; i < dim; ++i) key[static_cast<size_t>(i)] -= mean[i];
  Rotate(key.data(), dim);
  float greatest = 0;
  for (const float x : key) greatest = std::fabs(x) > greatest ? std::fabs(x) : greatest;
  Row row;
  const float exact_scale = greatest > 1e-15f && greatest < 1e15f ? 63 / greatest : 1.0f;
  row.inverse_scale = static_cast<uint16_t>(std::bit_cast<uint32_t>(exact_scale) >> 16);
  const auto inverse = std::bit_cast<float>(static_cast<uint32_t>(row.inverse_scale) << 16);
  float errors[16] = {}, norms[16] = {}, all[16] = {};
  for (size_t i = 0; i < key.size(); ++i) {
    const float exact = key[i] * inverse;
    float whole = exact < 4e6f && exact > -4e6f ? std::nearbyint(exact) : exact;
    whole = whole > 63 ? 63 : whole;
    whole = whole > -63 ? whole : -63;
    const float rest = exact - whole;
    errors[i % 16] += rest * rest;
    norms[i % 16] += whole * whole;
    all[i % 16] += exact * exact;
    row.code.push_back(static_cast<uint8_t>(static_cast<int>(whole) + 64));
  }
  const auto sum = [](const float* parts) {
    float total = 0;
    for (int i = 0; i < 16; ++i) total += parts[i];
    return total;
  };
  const float squares = sum(all);
  row.error = std::sqrt(sum(errors)) * 1.0001f + 3e-6f * std::sqrt(squares) + 1e-15f;
  row.norm = std::sqrt(sum(norms)) * 1.0001f;
  if (!(greatest < 1e15f) || std::isnan(squares)) {
    row.error = kInfinity;
    row.norm = 0;
  }
  return row;
}

std::vector<char> BlockOf(const std::vector<float>& rows, const float* mean, int64_t dim, int64_t coded_dim) {
  BlockHeader header;
  std::memset(&header, 0, sizeof(header));
  std::vector<char> block(static_cast<size_t>(BlockBytes(coded_dim)));
  for (int r = 0; r < kBlockRows; ++r) {
    const auto first = rows.begin() + r * coded_dim;
    const Row row = CodeOf(std::vector<float>(first, first + coded_dim), mean, dim);
    header.inverse_scale[r] = row.inverse_scale;
    header.error = std::max(header.error, row.error);
    header.norm = std::max(header.norm, row.norm);
    for (int64_t i = 0; i < coded_dim; ++i) {
      block[sizeof(header) + static_cast<size_t>(i / 4 * 64 + r * 4 + i % 4)] =
          static_cast<char>(row.code[static_cast<size_t>(i)]);
    }
  }
  std::memcpy(block.data(), &header, sizeof(header));
  return block;
}

// Every kind of number that a key may have, and some that no key may have.
TEST(CodingKernelsTest, EveryKernelGivesTheSameBits) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  const auto uniform = [&](size_t n) { return random() % n; };
  const std::vector<std::function<float()>> kinds = {
      [&] { return normal(random); },
      [&] { return 0.0f; },
      [&] { return uniform(40) == 0 ? 1e4f * normal(random) : normal(random); },
      [&] { return std::ldexp(normal(random), static_cast<int>(uniform(200)) - 100); },
      [&] { return std::ldexp(normal(random), static_cast<int>(uniform(24)) - 149); },
      [&] { return uniform(100) == 0 ? kInfinity : normal(random); },
      [&] { return uniform(100) == 0 ? std::numeric_limits<float>::quiet_NaN() : normal(random); },
      [&] { return uniform(2) == 0 ? 3e38f : -3e38f; },
      [&] { return static_cast<float>(static_cast<int>(uniform(127)) - 63); },  // halves, ties and negative zeros
      [&] { return std::bit_cast<float>(static_cast<uint32_t>(random())); },
  };
  for (const int64_t dim : {1, 2, 3, 4, 7, 16, 30, 32, 48, 64, 80, 96, 100, 112, 128, 129, 192, 256, 512, 1030, 2048}) {
    const int64_t coded_dim = (dim + 15) / 16 * 16;
    const auto floats = static_cast<size_t>(kBlockRows * coded_dim);
    std::vector<float> weights(static_cast<size_t>(coded_dim));
    RotationWeights(dim, weights.data());
    for (size_t round = 0; round < 3 * kinds.size(); ++round) {
      std::vector<float> rows(floats), mean(static_cast<size_t>(coded_dim));
      for (int64_t i = 0; i < dim; ++i) {
        mean[static_cast<size_t>(i)] = round % 2 == 0 ? 0.0f : normal(random);
        for (int64_t r = 0; r < kBlockRows; ++r) {
          // All rows of one kind, then each of another.
          const size_t kind = round < kinds.size() ? round : (round + static_cast<size_t>(r)) % kinds.size();
          rows[static_cast<size_t>(r * coded_dim + i)] = kinds[kind]();
        }
      }
      const std::vector<char> expected = BlockOf(rows, mean.data(), dim, coded_dim);
      for (const CodingKernels* const kernels : AllKernels()) {
        std::vector<float> columns(floats + 16);
        float* const aligned = columns.data() + (16 - reinterpret_cast<uintptr_t>(columns.data()) / 4 % 16) % 16;
        std::vector<BlockHeader> block(expected.size() / sizeof(BlockHeader));
        kernels->encode_block(rows.data(), mean.data(), weights.data(), dim, coded_dim, aligned,
                              reinterpret_cast<char*>(block.data()));
        for (size_t i = 0; i < expected.size(); ++i) {
          ASSERT_EQ(static_cast<int>(reinterpret_cast<const char*>(block.data())[i]), static_cast<int>(expected[i]))
              << kernels->name << ", dim " << dim << ", round " << round << ", byte " << i;
        }
      }
    }
  }
}

TEST(CodingKernelsTest, EveryKernelAddsRowsInOrder) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  for (const int64_t dim : {16, 48, 64, 80, 112, 128, 272}) {
    for (const int64_t n : {1, 5, 16}) {
      std::vector<float> rows(static_cast<size_t>(n * dim)), start(static_cast<size_t>(dim));
      for (float& x : rows) x = normal(random) * 100;
      for (float& x : start) x = normal(random);
      std::vector<float> expected = start;
      for (size_t i = 0; i < rows.size(); ++i) expected[i % static_cast<size_t>(dim)] += rows[i];
      for (const CodingKernels* const kernels : AllKernels()) {
        std::vector<float> sums = start;
        kernels->add_rows(rows.data(), n, dim, sums.data());
        EXPECT_EQ(sums, expected) << kernels->name << ", dim " << dim << ", " << n << " rows";
      }
    }
  }
}

}  // namespace
}  // namespace mneme::codes
