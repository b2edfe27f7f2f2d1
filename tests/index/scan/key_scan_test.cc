// SPDX-License-Identifier: Apache-2.0
#include "index/scan/key_scan.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

#include "index/scan/key_scan_kernel.h"

namespace mneme {
namespace {

constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kI8};

// Runs the test body once for each kernel that this CPU has.
class KeyScanTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const key_scan::Kernels* kernels = key_scan::FindKernels(GetParam());
    if (kernels == nullptr) {
      std::cout << "SKIPPED: this CPU or build has no " << GetParam() << " kernels\n";
      GTEST_SKIP();
    }
    key_scan::UseKernelsForTesting(kernels);
    EXPECT_EQ(KeyScanKernelName(), GetParam());
  }
  void TearDown() override { key_scan::UseKernelsForTesting(nullptr); }
};

INSTANTIATE_TEST_SUITE_P(Kernels, KeyScanTest, testing::Values("plain", "avx2", "avx512"),
                         [](const auto& info) { return std::string(info.param); });

struct Data {
  std::unique_ptr<KeyRows> keys;
  std::vector<float> decoded;  // [rows, dim]
  std::vector<float> queries;  // [count, dim]
  std::vector<float> penalty;  // [rows]
  std::vector<Ranking> rankings;
};

// Keys from a small set of values where `ties` is true, so that many dot products are equal and exact.
Data MakeData(std::mt19937& random, DType dtype, int64_t rows, int64_t dim, int64_t count, bool ties) {
  std::normal_distribution<float> normal;
  Data data;
  data.keys = std::make_unique<KeyRows>(dtype, dim);
  const size_t row_bytes = RowBytes(dtype, dim);
  std::vector<float> row(static_cast<size_t>(dim));
  std::vector<char> encoded(row_bytes);
  for (int64_t r = 0; r < rows; ++r) {
    for (float& x : row) x = ties ? static_cast<float>(static_cast<int>(random() % 3) - 1) : normal(random);
    EncodeRow(row.data(), dtype, encoded.data(), dim);
    data.keys->Append(encoded.data(), 1);
    DecodeRow(dtype, encoded.data(), row.data(), dim);
    data.decoded.insert(data.decoded.end(), row.begin(), row.end());
    data.penalty.push_back(ties ? static_cast<float>(random() % 3) : std::fabs(normal(random)));
  }
  for (int64_t i = 0; i < count * dim; ++i) {
    data.queries.push_back(ties ? static_cast<float>(static_cast<int>(random() % 3) - 1) : normal(random));
  }
  for (int64_t i = 0; i < count; ++i) {
    Ranking ranking;
    ranking.scale = ties ? 0.5f : 0.25f + 0.01f * static_cast<float>(random() % 100);
    if (random() % 3 == 0) ranking.addend = ties ? 2.0f : normal(random);
    if (random() % 3 == 0 && !ties) ranking.soft_cap = 5.0f;
    if (random() % 3 == 0) {
      ranking.decay = ties ? 1.0f : 0.3f;
      ranking.row_penalty = data.penalty.data();
    }
    data.rankings.push_back(ranking);
  }
  return data;
}

// The logit in double, and how far f32 arithmetic may be from it.
double ExactLogit(const Data& data, int64_t dim, int64_t query, int64_t row, double* tolerance) {
  const Ranking& ranking = data.rankings[static_cast<size_t>(query)];
  double dot = 0, magnitude = 0;
  for (int64_t d = 0; d < dim; ++d) {
    const double product = static_cast<double>(data.queries[static_cast<size_t>(query * dim + d)]) *
                           static_cast<double>(data.decoded[static_cast<size_t>(row * dim + d)]);
    dot += product;
    magnitude += std::fabs(product);
  }
  double logit = ranking.scale * dot;
  if (ranking.soft_cap > 0) logit = ranking.soft_cap * std::tanh(logit / ranking.soft_cap);
  logit += ranking.addend;
  if (ranking.decay != 0) logit -= static_cast<double>(ranking.decay) * ranking.row_penalty[row];
  *tolerance = 1.2e-7 * static_cast<double>(dim + 4) * (magnitude * ranking.scale + std::fabs(ranking.addend) + 10);
  return logit;
}

std::vector<std::vector<Scored>> Scan(const Data& data, int64_t begin, int64_t end, int64_t first_token, int64_t k) {
  std::vector<TopK> top(data.rankings.size(), TopK(k));
  ScanTopK(*data.keys, begin, end, first_token, data.queries.data(), static_cast<int64_t>(top.size()),
           data.rankings.data(), top.data());
  std::vector<std::vector<Scored>> results;
  for (TopK& t : top) {
    const absl::Span<const Scored> sorted = t.Sorted();
    results.emplace_back(sorted.begin(), sorted.end());
  }
  return results;
}

bool SameBits(float a, float b) {
  return std::memcmp(&a, &b, sizeof(a)) == 0;
}

void ExpectSame(absl::Span<const Scored> actual, absl::Span<const Scored> expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(actual[i].index, expected[i].index) << i;
    ASSERT_TRUE(SameBits(actual[i].score, expected[i].score)) << actual[i].score << " != " << expected[i].score;
  }
}

TEST_P(KeyScanTest, EqualsBruteForceInDouble) {
  constexpr uint32_t kSeed = 20;
  std::mt19937 random(kSeed);
  constexpr int64_t kDims[] = {1, 7, 64, 128, 129, 80};
  for (int trial = 0; trial < 160; ++trial) {
    const DType dtype = kTypes[trial % 4];
    const int64_t dim = kDims[random() % 6];
    const int64_t rows = 1 + static_cast<int64_t>(random() % (trial % 8 == 0 ? 3000 : 400));
    const int64_t count = trial % 16 == 0 ? 40 : 1 + static_cast<int64_t>(random() % 17);
    const int64_t begin = static_cast<int64_t>(random()) % rows;
    const int64_t end = begin + 1 + static_cast<int64_t>(random()) % (rows - begin);
    const int64_t k = trial % 5 == 0 ? 1 : trial % 7 == 0 ? rows + 5 : 1 + static_cast<int64_t>(random() % 40);
    const Data data = MakeData(random, dtype, rows, dim, count, /*ties=*/false);
    const auto results = Scan(data, begin, end, 1000, k);
    for (int64_t q = 0; q < count; ++q) {
      std::vector<double> exact;
      double worst_tolerance = 0;
      for (int64_t r = begin; r < end; ++r) {
        double tolerance;
        exact.push_back(ExactLogit(data, dim, q, r, &tolerance));
        worst_tolerance = std::max(worst_tolerance, tolerance);
      }
      std::vector<double> sorted = exact;
      std::sort(sorted.begin(), sorted.end(), std::greater<>());
      const auto& result = results[static_cast<size_t>(q)];
      ASSERT_EQ(static_cast<int64_t>(result.size()), std::min(k, end - begin));
      for (size_t i = 0; i < result.size(); ++i) {
        const int64_t row = result[i].index - 1000;
        ASSERT_TRUE(row >= begin && row < end);
        ASSERT_NEAR(result[i].score, exact[static_cast<size_t>(row - begin)], worst_tolerance)
            << "seed " << kSeed << " trial " << trial << " " << DTypeName(dtype) << " dim " << dim;
        ASSERT_NEAR(result[i].score, sorted[i], worst_tolerance);
        if (i > 0) {
          ASSERT_TRUE(Better(result[i - 1], result[i]));
        }
      }
    }
  }
}

TEST_P(KeyScanTest, TiesBreakByTheLowerIndex) {
  std::mt19937 random(9);
  for (const DType dtype : kTypes) {
    for (const int64_t k : {1, 3, 50, 400}) {
      constexpr int64_t kRows = 333, kDim = 6;
      const Data data = MakeData(random, dtype, kRows, kDim, 5, /*ties=*/true);
      const auto results = Scan(data, 0, kRows, 7, k);
      for (int64_t q = 0; q < 5; ++q) {
        std::vector<Scored> expected;
        for (int64_t r = 0; r < kRows; ++r) {
          double tolerance;
          // Small whole numbers and halves: exact in f32 unless i8 scales intervene, which are the same for all.
          const double logit = ExactLogit(data, kDim, q, r, &tolerance);
          expected.push_back({static_cast<float>(std::round(logit * 4) / 4), r + 7});
        }
        std::sort(expected.begin(), expected.end(), Better);
        expected.resize(static_cast<size_t>(std::min(k, kRows)));
        const auto& result = results[static_cast<size_t>(q)];
        ASSERT_EQ(result.size(), expected.size());
        for (size_t i = 0; i < result.size(); ++i) {
          ASSERT_NEAR(result[i].score, expected[i].score, 1e-5);
          if (dtype != DType::kI8) {
            ASSERT_EQ(result[i].index, expected[i].index) << i;
          }
        }
      }
    }
  }
}

TEST_P(KeyScanTest, SameBitsWhateverRangeCountAndThread) {
  std::mt19937 random(31);
  for (const DType dtype : kTypes) {
    for (const int64_t dim : {7, 64, 129}) {
      constexpr int64_t kRows = 1003, kCount = 21;
      const Data data = MakeData(random, dtype, kRows, dim, kCount, /*ties=*/false);
      const auto whole = Scan(data, 0, kRows, 0, kRows);
      // All rows, one query at a time, cut at random places, on two threads.
      for (int64_t cut = 1; cut < kRows; cut += 97 + static_cast<int64_t>(random() % 200)) {
        std::vector<TopK> pieces(2 * kCount, TopK(kRows));
        const auto scan_side = [&](size_t side) {
          for (int64_t q = 0; q < kCount; ++q) {
            ScanTopK(*data.keys, side == 0 ? 0 : cut, side == 0 ? cut : kRows, 0, data.queries.data() + q * dim, 1,
                     &data.rankings[static_cast<size_t>(q)], &pieces[2 * static_cast<size_t>(q) + side]);
          }
        };
        std::thread other(scan_side, 1);
        scan_side(0);
        other.join();
        for (size_t q = 0; q < kCount; ++q) {
          pieces[2 * q].Merge(pieces[2 * q + 1]);
          ExpectSame(pieces[2 * q].Sorted(), whole[q]);
          if (HasFatalFailure()) FAIL() << DTypeName(dtype) << " dim " << dim << " cut " << cut;
        }
      }
      // Groups of every size.
      for (int64_t count = 1; count <= kCount; ++count) {
        std::vector<TopK> top(static_cast<size_t>(count), TopK(kRows));
        ScanTopK(*data.keys, 0, kRows, 0, data.queries.data(), count, data.rankings.data(), top.data());
        for (size_t q = 0; q < top.size(); ++q) ExpectSame(top[q].Sorted(), whole[q]);
        if (HasFatalFailure()) FAIL() << DTypeName(dtype) << " dim " << dim << " count " << count;
      }
      // Re-ranking by DotRows and Ranking::Logit.
      for (size_t q = 0; q < kCount; ++q) {
        std::vector<int64_t> rows;
        for (const Scored& scored : whole[q]) rows.push_back(scored.index);
        std::vector<float> dots(rows.size());
        DotRows(*data.keys, rows, data.queries.data() + static_cast<int64_t>(q) * dim, dots.data());
        for (size_t i = 0; i < rows.size(); ++i) {
          const float logit = data.rankings[q].Logit(dots[i], rows[i]);
          ASSERT_TRUE(SameBits(logit, whole[q][i].score)) << logit << " != " << whole[q][i].score;
        }
      }
    }
  }
}

// Thresholds drop rows early in many ways, but never one of the k best.
TEST_P(KeyScanTest, FewBestAreTheFirstOfAll) {
  std::mt19937 random(12);
  for (int trial = 0; trial < 60; ++trial) {
    const int64_t rows = 500 + static_cast<int64_t>(random() % 1500);
    Data data = MakeData(random, kTypes[trial % 4], rows, 16, 9, /*ties=*/trial % 3 == 0);
    for (Ranking& ranking : data.rankings) {
      if (random() % 2 == 0) ranking.soft_cap = trial % 2 == 0 ? 3.0f : 50.0f;
      if (random() % 4 == 0) ranking.addend = -200.0f;
      if (random() % 4 == 0) ranking.scale = -ranking.scale;
    }
    const auto all = Scan(data, 0, rows, 0, rows);
    for (const int64_t k : {1, 2, 17, 100}) {
      const auto best = Scan(data, 0, rows, 0, k);
      for (size_t q = 0; q < best.size(); ++q) {
        ExpectSame(best[q], absl::MakeSpan(all[q]).first(static_cast<size_t>(k)));
        if (HasFatalFailure()) FAIL() << "trial " << trial << " k " << k;
      }
    }
  }
}

TEST_P(KeyScanTest, ManyQueriesEqualOneByOne) {
  std::mt19937 random(77);
  constexpr int64_t kRows = 600, kDim = 128, kCount = 530;  // more than one pass over the keys
  for (const DType dtype : {DType::kF16, DType::kI8}) {
    const Data data = MakeData(random, dtype, kRows, kDim, kCount, /*ties=*/false);
    const auto all = Scan(data, 3, kRows - 1, 0, 20);
    for (size_t q = 0; q < kCount; q += 7) {
      TopK top(20);
      ScanTopK(*data.keys, 3, kRows - 1, 0, data.queries.data() + static_cast<int64_t>(q) * kDim, 1, &data.rankings[q],
               &top);
      ExpectSame(top.Sorted(), all[q]);
    }
  }
}

TEST_P(KeyScanTest, EveryF16ValueIsDecodedExactly) {
  KeyRows keys(DType::kF16, 1);
  std::vector<uint16_t> bits;
  std::vector<int64_t> rows;
  for (uint32_t b = 0; b < 0x10000; ++b) {
    rows.push_back(b);
    bits.push_back(static_cast<uint16_t>(b));
  }
  keys.Append(bits.data(), 0x10000);
  std::vector<float> dots(0x10000);
  const float one = 1;
  DotRows(keys, rows, &one, dots.data());
  for (size_t b = 0; b < bits.size(); ++b) {
    const float value = F16ToF32(bits[b]);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(dots[b])) << b;
    } else {
      ASSERT_EQ(dots[b], value) << b;
    }
  }
}

TEST_P(KeyScanTest, NaNRowsNeverEnterAndEdgesAreHarmless) {
  KeyRows keys(DType::kF32, 2);
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  const float rows[] = {kNaN, 0, 1, 0, kNaN, kNaN, 2, 0};
  keys.Append(rows, 4);
  const float query[] = {1, 0};
  const Ranking ranking;
  TopK top(10);
  ScanTopK(keys, 0, 4, 0, query, 1, &ranking, &top);
  ASSERT_EQ(top.Sorted().size(), 2u);
  EXPECT_EQ(top.Sorted()[0].index, 3);
  EXPECT_EQ(top.Sorted()[1].index, 1);
  top.Reset(10);
  ScanTopK(keys, 2, 2, 0, query, 1, &ranking, &top);
  ScanTopK(keys, 0, 4, 0, query, 0, &ranking, &top);
  EXPECT_TRUE(top.Sorted().empty());
  top.Reset(0);
  ScanTopK(keys, 0, 4, 0, query, 1, &ranking, &top);
  EXPECT_TRUE(top.Sorted().empty());
  DotRows(keys, {}, query, nullptr);
}

TEST_P(KeyScanTest, ScansWhileRowsAreAppended) {
  constexpr int64_t kRows = 4000, kDim = 24;
  std::mt19937 random(4);
  const Data data = MakeData(random, DType::kF16, kRows, kDim, 4, /*ties=*/false);
  KeyRows growing(DType::kF16, kDim);
  std::atomic<int> bad{0};
  std::vector<std::thread> readers;
  for (int reader = 0; reader < 2; ++reader) {
    readers.emplace_back([&] {
      for (int64_t size = 0; size < kRows;) {
        size = growing.size();
        std::vector<TopK> top(4, TopK(5)), expected(4, TopK(5));
        ScanTopK(growing, size / 2, size, 0, data.queries.data(), 4, data.rankings.data(), top.data());
        ScanTopK(*data.keys, size / 2, size, 0, data.queries.data(), 4, data.rankings.data(), expected.data());
        for (size_t q = 0; q < top.size(); ++q) {
          const auto a = top[q].Sorted(), b = expected[q].Sorted();
          if (a.size() != b.size()) {
            ++bad;
            continue;
          }
          for (size_t i = 0; i < a.size(); ++i) bad += a[i].index != b[i].index || !SameBits(a[i].score, b[i].score);
        }
        if (size > 0) {
          const int64_t last[] = {size - 1};
          float dot, expected_dot;
          DotRows(growing, last, data.queries.data(), &dot);
          DotRows(*data.keys, last, data.queries.data(), &expected_dot);
          bad += !SameBits(dot, expected_dot);
        }
      }
    });
  }
  for (int64_t r = 0; r < kRows; ++r) growing.Append(data.keys->Row(r), 1);
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(bad, 0);
}

TEST(KeyScanKernelNameTest, IsOneOfTheThree) {
  const absl::string_view name = KeyScanKernelName();
  std::cout << "kernels: " << name << "\n";
  if (std::getenv("MNEME_KERNELS") == nullptr) {
    EXPECT_TRUE(name == "plain" || name == "avx2" || name == "avx512") << name;
  }
  EXPECT_EQ(key_scan::FindKernels("sse9"), nullptr);
}

}  // namespace
}  // namespace mneme
