// SPDX-License-Identifier: Apache-2.0
#include "index/scan/code_scan.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "index/scan/code_scan_kernel.h"
#include "index/scan/dot_bound.h"
#include "index/scan/key_scan.h"
#include "index/scan/query_codes.h"
#include "index/scan/rotation.h"
#include "index/scan/sampled_blocks.h"

namespace mneme {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class CodeScanTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const codes::Kernels* kernels = codes::FindKernels(GetParam());
    if (kernels == nullptr) {
      std::cout << "SKIPPED: this CPU or build has no " << GetParam() << " kernels\n";
      GTEST_SKIP();
    }
    codes::UseKernelsForTesting(kernels);
  }
  void TearDown() override { codes::UseKernelsForTesting(nullptr); }
};

INSTANTIATE_TEST_SUITE_P(Kernels, CodeScanTest, testing::Values("plain", "avx2", "avx512vnni", "neon"),
                         [](const auto& tested) { return std::string(tested.param); });

// Kinds of keys that are hard on codes, on bounds or on thresholds.
enum class Keys {
  kNormal,
  kOutlierChannels,  // a few channels a hundred times the others, as attention keys have
  kNearTies,         // all rows next to one row, many equal
  kHugeNorms,        // norms from 1e-3 to 1e+4
  kConstantRows,     // every element of a row the same
  kTiny,             // below what f32 can square
  kHuge,             // beyond what f32 can square
  kZero,
  kSteps,  // far from stationary: the mean jumps
};
constexpr Keys kAllKeys[] = {Keys::kNormal,       Keys::kOutlierChannels,
                             Keys::kNearTies,     Keys::kHugeNorms,
                             Keys::kConstantRows, Keys::kTiny,
                             Keys::kHuge,         Keys::kZero,
                             Keys::kSteps};

struct Data {
  std::unique_ptr<KeyRows> keys;
  std::unique_ptr<KeyCodes> coded;
  std::vector<float> queries;  // [count, dim]
  std::vector<float> penalty;  // [rows]
  std::vector<Ranking> rankings;
};

Data MakeData(std::mt19937& random, Keys kind, DType dtype, int64_t rows, int64_t dim, int64_t count) {
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform;
  Data data;
  data.keys = std::make_unique<KeyRows>(dtype, dim);
  data.coded = std::make_unique<KeyCodes>(dim);
  std::vector<float> row(static_cast<size_t>(dim)), base(row.size());
  for (float& x : base) x = normal(random);
  std::vector<char> encoded(RowBytes(dtype, dim));
  for (int64_t r = 0; r < rows; ++r) {
    for (float& x : row) x = normal(random);
    switch (kind) {
      case Keys::kNormal: break;
      case Keys::kOutlierChannels:
        for (size_t i = 0; i < row.size(); i += 13) row[i] = 100 * base[i] + 5 * row[i];
        break;
      case Keys::kNearTies:
        for (size_t i = 0; i < row.size(); ++i) row[i] = base[i] + (random() % 3 == 0 ? 1e-3f * row[i] : 0.0f);
        break;
      case Keys::kHugeNorms: {
        const float size = std::pow(10.0f, 7 * uniform(random) - 3);
        for (float& x : row) x *= size;
        break;
      }
      case Keys::kConstantRows: std::fill(row.begin(), row.end(), normal(random)); break;
      case Keys::kTiny:
        for (float& x : row) x *= 1e-22f;
        break;
      case Keys::kHuge:
        for (float& x : row) x *= dtype == DType::kF16 ? 1e4f : 1e25f;
        break;
      case Keys::kZero: std::fill(row.begin(), row.end(), 0.0f); break;
      case Keys::kSteps:
        for (size_t i = 0; i < row.size(); ++i) row[i] += 30 * base[i] * static_cast<float>(r / 300 % 3);
        break;
    }
    EncodeRow(row.data(), dtype, encoded.data(), dim);
    data.keys->Append(encoded.data(), 1);
    data.penalty.push_back(std::fabs(normal(random)));
  }
  for (int64_t i = 0; i < count * dim; ++i) data.queries.push_back(normal(random));
  if (count > 3) std::fill_n(data.queries.begin() + 3 * dim, dim, 0.0f);
  for (int64_t i = 0; i < count; ++i) {
    Ranking ranking;
    ranking.scale = 0.05f + 0.01f * static_cast<float>(random() % 100);
    if (random() % 3 == 0) ranking.soft_cap = 5;
    if (random() % 3 == 0) ranking.addend = normal(random);
    if (random() % 3 == 0) {
      ranking.decay = uniform(random);
      ranking.row_penalty = data.penalty.data();
    }
    data.rankings.push_back(ranking);
  }
  data.coded->Extend(*data.keys);
  return data;
}

void ExpectSame(std::vector<TopK>& actual, std::vector<TopK>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    const absl::Span<const Scored> a = actual[i].Sorted(), e = expected[i].Sorted();
    ASSERT_EQ(a.size(), e.size()) << "query " << i;
    for (size_t j = 0; j < a.size(); ++j) {
      ASSERT_EQ(a[j].index, e[j].index) << "query " << i << " place " << j;
      ASSERT_EQ(std::memcmp(&a[j].score, &e[j].score, sizeof(float)), 0) << "query " << i << " place " << j;
    }
  }
}

ScanCounts ExpectSameAsScan(const Data& data, int64_t begin, int64_t end, int64_t k,
                            const float* known_thresholds = nullptr) {
  const auto count = static_cast<int64_t>(data.rankings.size());
  std::vector<TopK> expected(static_cast<size_t>(count), TopK(k)), actual(expected);
  ScanTopK(*data.keys, begin, end, 1000, data.queries.data(), count, data.rankings.data(), expected.data());
  ScanCounts counts;
  ScanCodesTopK(*data.keys, *data.coded, begin, end, 1000, data.queries.data(), count, data.rankings.data(),
                known_thresholds, actual.data(), &counts);
  ExpectSame(actual, expected);
  EXPECT_EQ(counts.by_code + counts.by_key, count * (end - begin));
  EXPECT_LE(counts.reranked, counts.by_code + counts.rescanned);
  return counts;
}

TEST_P(CodeScanTest, EqualsTheKeyScanBitForBit) {
  std::mt19937 random(1);
  for (const Keys kind : kAllKeys) {
    for (const int64_t dim : {1, 7, 16, 64, 80, 128, 129, 256}) {
      for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kI8}) {
        const int64_t rows = 200 + static_cast<int64_t>(random() % 900);
        const int64_t count = 1 + static_cast<int64_t>(random() % 9);
        const Data data = MakeData(random, kind, dtype, rows, dim, count);
        ASSERT_EQ(data.coded->rows(), rows / 16 * 16);
        for (const int64_t k : {1, 8, 32, 2000}) {
          SCOPED_TRACE(testing::Message() << "keys " << static_cast<int>(kind) << " dim " << dim << " "
                                          << DTypeName(dtype) << " rows " << rows << " count " << count << " k " << k);
          ExpectSameAsScan(data, 0, rows, k);
          const int64_t begin = static_cast<int64_t>(random()) % (rows / 2);
          ExpectSameAsScan(data, begin, begin + static_cast<int64_t>(random()) % (rows - begin), k);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// Ranges so long that some blocks are sampled first.
TEST_P(CodeScanTest, EqualsTheKeyScanWhereBlocksAreSampled) {
  std::mt19937 random(11);
  for (const Keys kind : kAllKeys) {
    const int64_t rows = 5000 + static_cast<int64_t>(random() % 4000);
    const int64_t count = 1 + static_cast<int64_t>(random() % 9);
    const Data data = MakeData(random, kind, DType::kF16, rows, 32, count);
    for (const int64_t k : {1, 8, 32}) {
      SCOPED_TRACE(testing::Message() << "keys " << static_cast<int>(kind) << " rows " << rows << " count " << count
                                      << " k " << k);
      ASSERT_TRUE(SampledBlocks(rows / KeyCodes::kChunkRows - 4).EnoughFor(k));
      ExpectSameAsScan(data, 0, rows, k);
      ExpectSameAsScan(data, 700, rows - 100, k);
      if (HasFatalFailure()) return;
    }
  }
}

// Random rows. Those with good(row) point in the query's direction.
template <typename Good>
Data MakeGoodRows(std::mt19937& random, int64_t rows, const Good& good) {
  constexpr int64_t kDim = 64;
  std::normal_distribution<float> normal;
  Data data;
  data.keys = std::make_unique<KeyRows>(DType::kF16, kDim);
  data.coded = std::make_unique<KeyCodes>(kDim);
  for (int64_t i = 0; i < kDim; ++i) data.queries.push_back(normal(random));
  std::vector<float> row(kDim);
  std::vector<char> encoded(RowBytes(DType::kF16, kDim));
  for (int64_t r = 0; r < rows; ++r) {
    for (size_t i = 0; i < row.size(); ++i) row[i] = normal(random) + (good(r) ? data.queries[i] : 0.0f);
    EncodeRow(row.data(), DType::kF16, encoded.data(), kDim);
    data.keys->Append(encoded.data(), 1);
  }
  data.coded->Extend(*data.keys);
  data.rankings.assign(1, Ranking{.scale = 0.1f});
  return data;
}

// The sampled blocks hold good rows, the others none.
TEST_P(CodeScanTest, RescansWhereTheSampleMisleads) {
  constexpr int64_t kRows = 8192, kTop = 32;
  const SampledBlocks sample(kRows / KeyCodes::kChunkRows);
  std::mt19937 random(12);
  const Data wrong = MakeGoodRows(random, kRows, [&](int64_t r) {
    const int64_t block = r / KeyCodes::kBlockRows;
    const int64_t chunk = r / KeyCodes::kChunkRows;
    return r % KeyCodes::kBlockRows == 5 && chunk < sample.Rank(kTop) &&
           SampledBlocks::PlaceInChunk(chunk) == block % codes::kChunkBlocks;
  });
  EXPECT_GT(ExpectSameAsScan(wrong, 0, kRows, kTop).rescanned, 0);
}

// Neighbouring rows are alike: many good rows in one place must not be taken for many more elsewhere.
TEST_P(CodeScanTest, GoodNeighboursDoNotMisleadTheSample) {
  constexpr int64_t kRows = 8192, kTop = 32;
  const SampledBlocks sample(kRows / KeyCodes::kChunkRows);
  std::mt19937 random(13);
  for (int64_t first = 0; first < 4 * KeyCodes::kChunkRows; first += 208) {
    const Data data = MakeGoodRows(random, kRows, [&](int64_t r) { return r >= first && r < first + 40; });
    EXPECT_EQ(ExpectSameAsScan(data, 0, kRows, kTop).rescanned, 0) << first;
  }
  // All of them in a sampled block.
  const Data data = MakeGoodRows(random, kRows, [&](int64_t r) {
    return r / KeyCodes::kChunkRows == 7 &&
           r / KeyCodes::kBlockRows % codes::kChunkBlocks == SampledBlocks::PlaceInChunk(7);
  });
  EXPECT_EQ(ExpectSameAsScan(data, 0, kRows, 16).rescanned, 0);
}

// Codes whose memory ends inside a chunk and continues elsewhere, as it does when a memory grows: the rows there must
// still be compared with their own chunk's mean.
TEST_P(CodeScanTest, CodesThatGoOnElsewhereInAChunk) {
  constexpr int64_t kDim = 64, kFirst = 5000, kRows = 8000;
  constexpr int64_t kTop = 32;
  constexpr int64_t kPlace = kFirst / KeyCodes::kBlockRows * KeyCodes::kBlockRows;  // the first row elsewhere
  constexpr int64_t kChunk = kPlace / KeyCodes::kChunkRows;
  std::mt19937 random(14);
  std::normal_distribution<float> normal;
  Data data;
  data.keys = std::make_unique<KeyRows>(DType::kF32, kDim);
  data.coded = std::make_unique<KeyCodes>(kDim);
  for (int64_t i = 0; i < kDim; ++i) data.queries.push_back(normal(random));
  std::vector<float> row(kDim);
  for (int64_t r = 0; r < kRows; ++r) {
    // The chunk before is good, so its mean makes most of the dot products of the best rows, which begin at kPlace.
    const float good = r >= kPlace && r < kPlace + 8 ? 6.0f : r / KeyCodes::kChunkRows == kChunk - 1 ? 5.0f : 0.0f;
    for (size_t i = 0; i < row.size(); ++i) row[i] = 0.1f * normal(random) + good * data.queries[i];
    data.keys->Append(row.data(), 1);
    if (r + 1 == kFirst) data.coded->Extend(*data.keys);
  }
  data.coded->Extend(*data.keys);
  int64_t contiguous;
  data.coded->Blocks(kChunk * KeyCodes::kChunkRows, &contiguous);
  ASSERT_LT(contiguous, codes::kChunkBlocks);
  data.rankings.assign(1, Ranking{.scale = 0.1f});
  ExpectSameAsScan(data, 0, kRows, kTop);
  // From anywhere in the chunks that a kernel goes through in one call with this one.
  for (int64_t begin = (kChunk - 3) * KeyCodes::kChunkRows; begin < kPlace; begin += KeyCodes::kBlockRows) {
    SCOPED_TRACE(begin);
    ExpectSameAsScan(data, begin, kRows, kTop);
  }
}

// If logits do not rise with the dot product, codes bound nothing, and the result is still right.
TEST_P(CodeScanTest, RankingsThatCodesCannotBoundAreScannedByKey) {
  std::mt19937 random(2);
  Data data = MakeData(random, Keys::kNormal, DType::kF16, 1000, 64, 4);
  for (const float scale : {-1.0f, 0.0f, kInfinity}) {
    data.rankings[2] = Ranking{.scale = scale};
    const ScanCounts counts = ExpectSameAsScan(data, 0, 1000, 8);
    EXPECT_EQ(counts.by_code, 0);
  }
}

TEST_P(CodeScanTest, AKnownThresholdSavesKeysAndChangesNothing) {
  std::mt19937 random(3);
  Data data = MakeData(random, Keys::kNormal, DType::kF16, 20000, 64, 3);
  for (Ranking& ranking : data.rankings) ranking = Ranking{.scale = 0.125f};
  const ScanCounts without = ExpectSameAsScan(data, 0, 20000, 32);
  std::vector<TopK> best(3, TopK(32));
  ScanTopK(*data.keys, 0, 20000, 1000, data.queries.data(), 3, data.rankings.data(), best.data());
  std::vector<float> known_thresholds;
  for (TopK& top : best) known_thresholds.push_back(top.Sorted().back().score);
  const ScanCounts with = ExpectSameAsScan(data, 0, 20000, 32, known_thresholds.data());
  EXPECT_LT(with.reranked, without.reranked);
  std::cout << "keys read a query: " << without.reranked / 3 << " without a known threshold, " << with.reranked / 3
            << " with the best one\n";
}

// A bound that excludes no row would pass every test above by reading all keys.
TEST_P(CodeScanTest, ReranksFewRows) {
  std::mt19937 random(4);
  for (const Keys kind : {Keys::kNormal, Keys::kOutlierChannels}) {
    for (const int64_t dim : {64, 128, 256}) {
      constexpr int64_t kRows = 20000;
      Data data = MakeData(random, kind, DType::kF16, kRows, dim, 4);
      data.queries.assign(data.queries.begin(), data.queries.begin() + 3 * dim);  // without the zero query
      data.rankings.assign(3, Ranking{.scale = 0.1f});
      const ScanCounts counts = ExpectSameAsScan(data, 0, kRows, 32);
      std::cout << "keys " << static_cast<int>(kind) << " dim " << dim << ": " << counts.reranked / 3 << " of " << kRows
                << " keys read a query\n";
      EXPECT_LT(counts.reranked / 3, kRows / 20);
      EXPECT_EQ(counts.rescanned, 0);
    }
  }
}

// An estimate may be wrong: a query along what the codes of the best rows leave out.
TEST_P(CodeScanTest, RescansWhereTheBestAreWorseThanTheirCodes) {
  constexpr int64_t kDim = 64, kRows = 1000;
  std::mt19937 random(8);
  std::normal_distribution<float> normal;
  Data data;
  data.keys = std::make_unique<KeyRows>(DType::kF32, kDim);
  data.coded = std::make_unique<KeyCodes>(kDim);
  std::vector<float> row(kDim);
  for (float& x : row) x = normal(random);
  // A row and its opposite by turns: their mean is zero.
  for (int64_t r = 0; r < kRows; ++r) {
    data.keys->Append(reinterpret_cast<const char*>(row.data()), 1);
    for (float& x : row) x = -x;
  }
  data.coded->Extend(*data.keys);
  int64_t contiguous;
  const char* block = data.coded->Blocks(0, &contiguous);
  const auto* header = reinterpret_cast<const codes::BlockHeader*>(block);
  const auto inverse_scale = std::bit_cast<float>(static_cast<uint32_t>(header->inverse_scale[0]) << 16);
  std::vector<float> rotated(row);
  Rotate(rotated.data(), kDim);
  std::vector<double> coded(kDim), rest(kDim), query(kDim);
  double coded2 = 0, rest2 = 0, both = 0;
  for (size_t i = 0; i < kDim; ++i) {
    const auto code = static_cast<uint8_t>(block[sizeof(codes::BlockHeader) + i / 4 * 64 + i % 4]);
    coded[i] = (code - codes::kZeroCode) / static_cast<double>(inverse_scale);
    rest[i] = rotated[i] - coded[i];
    coded2 += coded[i] * coded[i];
    both += coded[i] * rest[i];
  }
  for (size_t i = 0; i < kDim; ++i) {
    rest[i] -= both / coded2 * coded[i];
    rest2 += rest[i] * rest[i];
  }
  for (size_t i = 0; i < kDim; ++i) query[i] = coded[i] - coded2 / (2 * rest2) * rest[i];
  for (size_t j = 0; j < kDim; ++j) {  // rotated back
    std::vector<float> unit(kDim);
    unit[j] = 1;
    Rotate(unit.data(), kDim);
    data.queries.push_back(static_cast<float>(std::inner_product(unit.begin(), unit.end(), query.begin(), 0.0)));
  }
  data.rankings.assign(1, Ranking{.scale = 0.1f});
  EXPECT_GT(ExpectSameAsScan(data, 0, kRows, 8).rescanned, 0);
  EXPECT_GT(ExpectSameAsScan(data, 100, kRows, 32).rescanned, 0);
}

// The bound itself, in double precision: no row exceeds what its code allows.
TEST_P(CodeScanTest, NoRowExceedsItsBound) {
  std::mt19937 random(5);
  struct Row {
    codes::DotBound bound = {};
    bool seen = false;
  };
  for (const Keys kind : kAllKeys) {
    for (const int64_t dim : {1, 31, 64, 128}) {
      constexpr int64_t kRows = 512;
      const Data data = MakeData(random, kind, DType::kF32, kRows, dim, 1);
      const KeyCodes& coded = *data.coded;
      // A query as the scan prepares it, with the kernel's own precision.
      const codes::Kernels& kernels = *codes::FindKernels(GetParam());
      std::vector<float> rotated(data.queries.begin(), data.queries.begin() + dim);
      Rotate(rotated.data(), dim);
      std::vector<int8_t> values(static_cast<size_t>(coded.coded_dim()));
      const codes::QueryCode code = codes::EncodeQuery(rotated.data(), dim, kernels, values.data());
      double error = 0, norm = 0;
      for (size_t i = 0; i < rotated.size(); ++i) {
        error += std::pow(rotated[i] - static_cast<double>(code.step) * values[i], 2);
        norm += std::pow(data.queries[i], 2);
      }
      EXPECT_NEAR(code.error_squared, error, 1e-6 * error);
      std::vector<int8_t> packed(values.size() * static_cast<size_t>(kernels.value_copies));
      codes::PackQueryValues(kernels, values.data(), 0, 1, coded.coded_dim(), packed.data());
      std::vector<Row> rows(kRows);
      for (int64_t chunk = 0; chunk < kRows; chunk += KeyCodes::kChunkRows) {
        double exact_mean_dot = 0;
        for (int64_t i = 0; i < dim; ++i) {
          exact_mean_dot += static_cast<double>(data.queries[static_cast<size_t>(i)]) * coded.Mean(chunk)[i];
        }
        codes::Query query{.start = -codes::kZeroCode * code.sum,
                           .step = code.step,
                           .inverse_step = 1 / code.step,
                           .error_weight = static_cast<float>(std::sqrt(norm)),
                           .norm_weight = static_cast<float>(std::sqrt(error)),
                           .min_dot = -kInfinity};
        int64_t contiguous;
        const char* blocks = coded.Blocks(chunk, &contiguous);
        ASSERT_GE(contiguous, KeyCodes::kChunkRows / 16);
        const auto mean_dot = static_cast<float>(exact_mean_dot);
        kernels.scan(
            codes::BlockSpan{.blocks = blocks,
                             .count = KeyCodes::kChunkRows / 16,
                             .first_row = chunk,
                             .prefetch_bytes = 0,
                             .mean_dots = &mean_dot,
                             .mean_dot_stride = 1},
            coded.coded_dim(), packed.data(), &query, 1,
            [](void* context, codes::Query& own, const codes::BlockHits& hits) {
              for (int i = 0; i < 16; ++i) {
                (*static_cast<std::vector<Row>*>(context))[static_cast<size_t>(hits.first_row + i)] = {
                    codes::BoundDot(own, hits, i), (hits.rows >> i & 1) != 0};
              }
            },
            &rows);
      }
      std::vector<float> key(static_cast<size_t>(dim));
      for (int64_t r = 0; r < kRows; ++r) {
        data.keys->Decode(r, key.data());
        double dot = 0, size = 0;
        for (size_t i = 0; i < key.size(); ++i) {
          dot += static_cast<double>(key[i]) * data.queries[i];
          size += static_cast<double>(key[i]) * key[i];
        }
        const Row& row = rows[static_cast<size_t>(r)];
        ASSERT_TRUE(row.seen);
        // The scan adds this for f32's rounding; the query above was made without it.
        const double room = (static_cast<double>(dim) + 64) * 0x1p-23 * std::sqrt(norm * size) * 4 + 1e-36;
        const float most = row.bound.estimate + row.bound.margin;
        ASSERT_FALSE(most < dot - room) << "keys " << static_cast<int>(kind) << " dim " << dim << " row " << r << ": "
                                        << most << " < " << dot;
      }
    }
  }
}

TEST_P(CodeScanTest, CodesDoNotDependOnWhenTheyAreMade) {
  std::mt19937 random(6);
  const Data data = MakeData(random, Keys::kOutlierChannels, DType::kF16, 1000, 64, 1);
  KeyRows growing(DType::kF16, 64);
  KeyCodes coded(64);
  for (int64_t row = 0; row < 1000; ++row) {
    growing.Append(data.keys->Row(row), 1);
    if (random() % 5 == 0) coded.Extend(growing);
  }
  coded.Extend(growing);
  ASSERT_EQ(coded.rows(), data.coded->rows());
  int64_t contiguous;
  for (int64_t row = 0; row < coded.rows(); row += 16) {
    ASSERT_EQ(std::memcmp(coded.Blocks(row, &contiguous), data.coded->Blocks(row, &contiguous),
                          static_cast<size_t>(codes::BlockBytes(64))),
              0);
  }
}

// Keys that are not in memory; reading one of them may fail.
class FarKeys final : public KeySource {
 public:
  explicit FarKeys(const KeyRows& keys) : KeySource(keys.dtype(), keys.dim()), keys_(keys) {}

  absl::Status Read(absl::Span<const int64_t> rows, absl::Span<char> keys) override {
    EXPECT_EQ(keys.size(), rows.size() * row_bytes());
    for (size_t i = 0; i < rows.size(); ++i) {
      EXPECT_TRUE(i == 0 || rows[i] > rows[i - 1]);
      if (rows[i] == lost) return absl::DataLossError("lost");
      std::memcpy(keys.data() + i * row_bytes(), keys_.Row(rows[i]), row_bytes());
    }
    read += static_cast<int64_t>(rows.size());
    return absl::OkStatus();
  }

  int64_t lost = -1;
  int64_t read = 0;

 private:
  const KeyRows& keys_;
};

// Codes are kept on disk, so they must not depend on the CPU.
TEST(KeyCodesTest, AreTheSameOnEveryCpu) {
  std::mt19937 random(21);
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a's
  for (const int64_t dim : {5, 64, 80, 129, 256}) {
    KeyRows keys(DType::kF16, dim);
    std::vector<float> row(static_cast<size_t>(dim));
    std::vector<char> encoded(RowBytes(DType::kF16, dim));
    for (int64_t r = 0; r < 600; ++r) {
      for (float& x : row) x = static_cast<float>(static_cast<int32_t>(random() >> 8) - (1 << 23)) * 0x1p-20f;
      row[0] *= 50;
      EncodeRow(row.data(), DType::kF16, encoded.data(), dim);
      keys.Append(encoded.data(), 1);
    }
    KeyCodes coded(dim);
    coded.Extend(keys);
    for (int64_t first = 0; first < coded.rows(); first += KeyCodes::kBlockRows) {
      int64_t contiguous;
      const char* block = coded.Blocks(first, &contiguous);
      for (size_t i = 0; i < coded.block_bytes(); ++i) {
        hash = (hash ^ static_cast<uint8_t>(block[i])) * 0x100000001b3u;
      }
    }
  }
  EXPECT_EQ(hash, 7070114201915135398u);
}

TEST_P(CodeScanTest, KeysThatAreNotInMemoryGiveTheSameBits) {
  std::mt19937 random(9);
  for (const Keys kind : kAllKeys) {
    for (const int64_t dim : {7, 64, 129}) {
      for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kI8}) {
        const int64_t rows = 200 + static_cast<int64_t>(random() % 1500);
        const int64_t count = 1 + static_cast<int64_t>(random() % 9);
        const Data data = MakeData(random, kind, dtype, rows, dim, count);
        // Other ranges: one in memory, one far away, one in memory again, each of them with rows that have no code.
        const Data other = MakeData(random, kind, dtype, rows, dim, count);
        for (const int64_t k : {1, 32, 2000}) {
          SCOPED_TRACE(testing::Message() << "keys " << static_cast<int>(kind) << " dim " << dim << " "
                                          << DTypeName(dtype) << " rows " << rows << " count " << count << " k " << k);
          const int64_t begin = static_cast<int64_t>(random()) % (rows / 2);
          std::vector<Ranking> moved = data.rankings;
          for (Ranking& ranking : moved) ranking.addend += 0.5f;
          std::vector<TopK> expected(static_cast<size_t>(count), TopK(k)), actual(expected);
          ScanTopK(*data.keys, begin, rows, 0, data.queries.data(), count, data.rankings.data(), expected.data());
          ScanTopK(*other.keys, 0, rows, 5000, data.queries.data(), count, moved.data(), expected.data());
          ScanTopK(*data.keys, 0, begin, 0, data.queries.data(), count, moved.data(), expected.data());
          FarKeys far(*data.keys), farther(*other.keys);
          CodeScan scan;
          scan.Begin(data.queries.data(), count, dim, nullptr, actual.data());
          scan.Add(far, *data.coded, begin, rows, 0, data.rankings.data());
          scan.Add(farther, *other.coded, 0, rows, 5000, moved.data());
          scan.Add(*data.keys, *data.coded, 0, begin, 0, moved.data());
          const absl::StatusOr<ScanCounts> counts = scan.End();
          ASSERT_TRUE(counts.ok()) << counts.status();
          ExpectSame(actual, expected);
          EXPECT_EQ(counts->by_code + counts->by_key, 2 * count * rows);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(CodeScanTest, RankingsThatCodesCannotBoundReadAllKeys) {
  std::mt19937 random(10);
  Data data = MakeData(random, Keys::kNormal, DType::kF16, 1000, 64, 4);
  data.rankings[1] = Ranking{.scale = -1.0f, .decay = 0.5f, .row_penalty = data.penalty.data()};
  std::vector<TopK> expected(4, TopK(8)), actual(expected);
  ScanTopK(*data.keys, 100, 1000, 0, data.queries.data(), 4, data.rankings.data(), expected.data());
  FarKeys far(*data.keys);
  CodeScan scan;
  scan.Begin(data.queries.data(), 4, 64, nullptr, actual.data());
  scan.Add(far, *data.coded, 100, 1000, 0, data.rankings.data());
  ASSERT_TRUE(scan.End().ok());
  ExpectSame(actual, expected);
  EXPECT_EQ(far.read, 900);
}

TEST_P(CodeScanTest, ReadsNoMoreKeysThanItReranks) {
  std::mt19937 random(11);
  constexpr int64_t kRows = 20000;
  Data data = MakeData(random, Keys::kNormal, DType::kF16, kRows, 128, 3);
  for (Ranking& ranking : data.rankings) ranking = Ranking{.scale = 0.1f};
  const ScanCounts near = ExpectSameAsScan(data, 0, kRows, 32);
  std::vector<TopK> top(3, TopK(32));
  FarKeys far(*data.keys);
  CodeScan scan;
  scan.Begin(data.queries.data(), 3, 128, nullptr, top.data());
  scan.Add(far, *data.coded, 0, kRows, 0, data.rankings.data());
  const absl::StatusOr<ScanCounts> counts = scan.End();
  ASSERT_TRUE(counts.ok());
  EXPECT_EQ(counts->reranked, far.read);
  EXPECT_EQ(far.read, near.reranked);
  EXPECT_LT(far.read, 3 * kRows / 50);
}

TEST_P(CodeScanTest, AKeyThatCannotBeReadIsAnError) {
  std::mt19937 random(12);
  const Data data = MakeData(random, Keys::kNormal, DType::kF16, 2000, 64, 3);
  std::vector<TopK> best(3, TopK(8));
  ScanTopK(*data.keys, 0, 2000, 0, data.queries.data(), 3, data.rankings.data(), best.data());
  for (const int64_t lost : {best[0].Sorted()[0].index, best[2].Sorted()[7].index}) {
    FarKeys far(*data.keys);
    far.lost = lost;
    CodeScan scan;
    for (int again = 0; again < 2; ++again) {
      std::vector<TopK> top(3, TopK(8));
      scan.Begin(data.queries.data(), 3, 64, nullptr, top.data());
      scan.Add(far, *data.coded, 0, 2000, 0, data.rankings.data());
      const absl::Status status = scan.End().status();
      EXPECT_EQ(absl::IsDataLoss(status), again == 0) << status;
      if (again == 1) ExpectSame(top, best);
      far.lost = -1;
    }
  }
}

TEST_P(CodeScanTest, RestoredCodesAreThoseThatWereKept) {
  std::mt19937 random(13);
  for (const int64_t rows : {16, 250, 256, 272, 1000, 5000}) {
    const Data data = MakeData(random, Keys::kOutlierChannels, DType::kF16, rows, 40, 1);
    const KeyCodes& kept = *data.coded;
    KeyCodes restored(40);
    // A failed attempt leaves nothing behind.
    EXPECT_FALSE(restored.Restore(kept.rows(), [](auto, auto) { return absl::DataLossError("lost"); }).ok());
    EXPECT_EQ(restored.rows(), 0);
    const auto copy = [&](const auto& pieces, int64_t n, size_t bytes, absl::Span<char> out) {
      ASSERT_EQ(out.size(), static_cast<size_t>(n) * bytes);
      for (int64_t i = 0; i < n; ++i) std::memcpy(out.data() + static_cast<size_t>(i) * bytes, pieces(i), bytes);
    };
    int64_t contiguous;
    ASSERT_TRUE(restored
                    .Restore(kept.rows(),
                             [&](absl::Span<char> means, absl::Span<char> blocks) {
                               copy([&](int64_t i) { return kept.Means(i * 256, &contiguous); },
                                    KeyCodes::MeansOf(kept.rows()), kept.mean_bytes(), means);
                               copy([&](int64_t i) { return kept.Blocks(i * 16, &contiguous); },
                                    KeyCodes::BlocksOf(kept.rows()), kept.block_bytes(), blocks);
                               return absl::OkStatus();
                             })
                    .ok());
    ASSERT_EQ(restored.rows(), kept.rows());
    for (int64_t row = 0; row < kept.rows(); row += 16) {
      ASSERT_EQ(std::memcmp(restored.Blocks(row, &contiguous), kept.Blocks(row, &contiguous), kept.block_bytes()), 0);
      ASSERT_EQ(std::memcmp(restored.Mean(row), kept.Mean(row), kept.mean_bytes()), 0);
    }
    // And they go on from there.
    KeyRows more(DType::kF16, 40);
    for (int64_t row = 0; row < rows; ++row) more.Append(data.keys->Row(row), 1);
    for (int64_t row = 0; row < 300; ++row) more.Append(data.keys->Row(row % rows), 1);
    KeyCodes anew(40);
    anew.Extend(more);
    restored.Extend(more);
    ASSERT_EQ(restored.rows(), anew.rows());
    for (int64_t row = 0; row < anew.rows(); row += 16) {
      ASSERT_EQ(std::memcmp(restored.Blocks(row, &contiguous), anew.Blocks(row, &contiguous), kept.block_bytes()), 0);
    }
  }
}

TEST_P(CodeScanTest, ScansWhileRowsAreAppendedAndCoded) {
  std::mt19937 random(7);
  constexpr int64_t kRows = 4000;
  const Data data = MakeData(random, Keys::kNormal, DType::kF16, kRows, 64, 2);
  KeyRows growing(DType::kF16, 64);
  KeyCodes coded(64);
  std::atomic<int> bad{0};
  std::vector<std::thread> readers;
  for (int reader = 0; reader < 3; ++reader) {
    readers.emplace_back([&] {
      for (int64_t size = 0; size < kRows;) {
        size = growing.size();
        coded.Extend(growing);
        std::vector<TopK> expected(2, TopK(5)), actual(expected);
        ScanTopK(*data.keys, 0, size, 0, data.queries.data(), 2, data.rankings.data(), expected.data());
        ScanCounts counts;
        ScanCodesTopK(growing, coded, 0, size, 0, data.queries.data(), 2, data.rankings.data(), nullptr, actual.data(),
                      &counts);
        for (size_t i = 0; i < 2; ++i) {
          const auto a = actual[i].Sorted(), e = expected[i].Sorted();
          bad += a.size() != e.size() || !std::equal(a.begin(), a.end(), e.begin(), [](const auto& x, const auto& y) {
                   return x.index == y.index && std::memcmp(&x.score, &y.score, sizeof(float)) == 0;
                 });
        }
      }
    });
  }
  for (int64_t row = 0; row < kRows; ++row) growing.Append(data.keys->Row(row), 1);
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(bad, 0);
}

TEST(RotationTest, KeepsInnerProductsAndSpreadsAChannel) {
  std::mt19937 random(8);
  std::normal_distribution<float> normal;
  for (const int64_t dim : {1, 2, 3, 7, 64, 80, 96, 128, 256, 576}) {
    std::vector<float> a(static_cast<size_t>(dim)), b(a.size());
    for (float& x : a) x = normal(random);
    for (float& x : b) x = normal(random);
    double before = 0, after = 0, norms = 0;
    for (size_t i = 0; i < a.size(); ++i) before += static_cast<double>(a[i]) * b[i];
    for (size_t i = 0; i < a.size(); ++i) norms += static_cast<double>(a[i]) * a[i] + static_cast<double>(b[i]) * b[i];
    Rotate(a.data(), dim);
    Rotate(b.data(), dim);
    for (size_t i = 0; i < a.size(); ++i) after += static_cast<double>(a[i]) * b[i];
    EXPECT_NEAR(before, after, 2e-6 * norms) << "dim " << dim;
  }
  std::vector<float> channel(128);
  channel[17] = 1;
  Rotate(channel.data(), 128);
  for (const float x : channel) EXPECT_NEAR(std::fabs(x), std::sqrt(1.0 / 128), 1e-6);
}

TEST(CodeScanKernelNameTest, IsTheBestOfThisCpu) {
  const std::string name(CodeScanKernelName());
  std::cout << "kernels: " << name << "\n";
  ASSERT_NE(codes::FindKernels(name.c_str()), nullptr);
  EXPECT_EQ(codes::FindKernels("sse9"), nullptr);
#if defined(__x86_64__)
  if (codes::FindKernels("avx2") != nullptr && std::getenv("MNEME_KERNELS") == nullptr) {
    EXPECT_NE(name, "plain");
  }
#endif
}

}  // namespace
}  // namespace mneme
