// SPDX-License-Identifier: Apache-2.0
// The index kind centroid: what it finds, what it says it missed, and that it is the exact scan where nothing may be
// missed.
#include "index/centroid/centroid_index.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

#include "base/checksum.h"
#include "index/centroid/centroid_search.h"
#include "index/centroid/clustering.h"
#include "index/centroid/code_scorer.h"
#include "index/centroid/miss_estimate.h"
#include "index/scan/code_scan_kernel.h"
#include "index/scan/key_scan.h"

namespace mneme {
namespace {

IndexSpec Spec(absl::string_view text) {
  auto spec = ParseIndexSpec(text);
  EXPECT_TRUE(spec.ok()) << spec.status();
  return spec.ok() ? *spec : IndexSpec();
}

// Keys as a memory stores them, and read one by one.
class StoredKeys final : public KeySource {
 public:
  StoredKeys(DType dtype, int64_t dim) : KeySource(dtype, dim), rows_(dtype, dim) {}

  void Append(const float* key) {
    std::vector<char> encoded(row_bytes());
    EncodeRow(key, dtype(), encoded.data(), dim());
    rows_.Append(encoded.data(), 1);
    decoded_.resize(decoded_.size() + static_cast<size_t>(dim()));
    rows_.Decode(rows_.size() - 1, decoded_.data() + decoded_.size() - static_cast<size_t>(dim()));
  }
  absl::Status Read(absl::Span<const int64_t> rows, absl::Span<char> keys) override {
    for (size_t i = 0; i < rows.size(); ++i) {
      EXPECT_TRUE(rows[i] >= 0 && rows[i] < size());
      EXPECT_TRUE(i == 0 || rows[i - 1] < rows[i]);
      std::memcpy(keys.data() + i * row_bytes(), rows_.Row(rows[i]), row_bytes());
    }
    return status_;
  }
  int64_t size() const { return rows_.size(); }
  const KeyRows& rows() const { return rows_; }
  const float* decoded() const { return decoded_.data(); }
  void FailFromNowOn() { status_ = absl::DataLossError("a damaged row"); }

 private:
  KeyRows rows_;
  std::vector<float> decoded_;  // [size, dim]
  absl::Status status_;
};

// Keys in clusters of uneven sizes around a large common mean, a few of great norm, some equal. seed: of everything.
void AppendKeys(int64_t rows, uint32_t seed, StoredKeys& keys, int64_t clusters = 60) {
  const int64_t dim = keys.dim();
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> centers(static_cast<size_t>(clusters * dim));
  for (float& x : centers) x = 1.5f * normal(random);
  std::vector<float> key(static_cast<size_t>(dim));
  for (int64_t r = 0; r < rows; ++r) {
    const auto c = static_cast<int64_t>(random() % static_cast<uint32_t>(clusters));
    const float size = random() % 200 == 0 ? 4.0f : 1.0f;
    const float spread = 0.2f + 0.5f * static_cast<float>(c) / static_cast<float>(clusters);
    if (random() % 10 != 0 || r == 0) {  // else the key before, again
      for (int64_t d = 0; d < dim; ++d) {
        key[static_cast<size_t>(d)] =
            (d == 3 ? 9.0f : 0.0f) + size * (centers[static_cast<size_t>(c * dim + d)] + spread * normal(random));
      }
    }
    keys.Append(key.data());
  }
}

// Keys that clusters tell little of: normally distributed around centers as far apart as the keys of one are.
void AppendNoise(int64_t rows, uint32_t seed, StoredKeys& keys) {
  constexpr int64_t kCenters = 200;
  const int64_t dim = keys.dim();
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> centers(static_cast<size_t>(kCenters * dim));
  for (float& x : centers) x = 0.7f * normal(random);
  std::vector<float> key(static_cast<size_t>(dim));
  for (int64_t r = 0; r < rows; ++r) {
    const auto c = static_cast<int64_t>(random() % kCenters);
    // Some directions have a wider spread than others.
    for (int64_t d = 0; d < dim; ++d) {
      key[static_cast<size_t>(d)] =
          centers[static_cast<size_t>(c * dim + d)] + (d < dim / 4 ? 1.4f : 0.5f) * normal(random);
    }
    keys.Append(key.data());
  }
}

std::vector<float> MakeQueries(int64_t count, int64_t dim, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> queries(static_cast<size_t>(count * dim));
  for (float& x : queries) x = 0.35f * normal(random);
  return queries;
}

std::unique_ptr<KeyIndex> Build(absl::string_view spec, const StoredKeys& keys) {
  auto index = BuildKeyIndex(Spec(spec), keys.decoded(), keys.size(), keys.dim());
  EXPECT_TRUE(index.ok()) << index.status();
  return index.ok() ? *std::move(index) : nullptr;
}

struct Found {
  std::vector<std::vector<Scored>> rows;  // [count], best first
  std::vector<float> missed;              // [count]
  std::vector<float> missed_at_most;      // [count]
  CentroidCounts counts;

  bool operator==(const Found& other) const {
    const auto same = [](const std::vector<Scored>& a, const std::vector<Scored>& b) {
      return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Scored& x, const Scored& y) {
        return x.index == y.index && std::memcmp(&x.score, &y.score, sizeof(x.score)) == 0;
      });
    };
    return std::equal(rows.begin(), rows.end(), other.rows.begin(), other.rows.end(), same) && missed == other.missed;
  }
};

struct Search {
  int64_t k = 32;
  int64_t row_begin = 0;
  int64_t row_end = -1;                // -1: all
  std::vector<Ranking> rankings = {};  // empty: the dot product alone
};

Found Probe(const KeyIndex& index, StoredKeys& keys, const std::vector<float>& queries, Search search = {}) {
  const int64_t count = static_cast<int64_t>(queries.size()) / keys.dim();
  if (search.rankings.empty()) search.rankings.resize(static_cast<size_t>(count));
  std::vector<TopK> top(static_cast<size_t>(count), TopK(search.k));
  CentroidSearch run;
  Found found;
  const CentroidQuery query = {.queries = queries.data(),
                               .count = count,
                               .rankings = search.rankings.data(),
                               .keys = &keys,
                               .row_begin = search.row_begin,
                               .row_end = search.row_end < 0 ? keys.size() : search.row_end,
                               .first_token = 100,
                               .top = top.data()};
  const absl::Status status = run.Run(*index.AsCentroid(), query, &found.counts);
  EXPECT_TRUE(status.ok()) << status;
  for (TopK& best : top) found.rows.emplace_back(best.Sorted().begin(), best.Sorted().end());
  found.missed.assign(run.missed().begin(), run.missed().end());
  found.missed_at_most.assign(run.missed_at_most().begin(), run.missed_at_most().end());
  return found;
}

// The same by the exact scan of keys.
Found RunExact(StoredKeys& keys, const std::vector<float>& queries, Search search = {}) {
  const int64_t count = static_cast<int64_t>(queries.size()) / keys.dim();
  if (search.rankings.empty()) search.rankings.resize(static_cast<size_t>(count));
  std::vector<TopK> top(static_cast<size_t>(count), TopK(search.k));
  ScanTopK(keys.rows(), search.row_begin, search.row_end < 0 ? keys.size() : search.row_end, 100, queries.data(), count,
           search.rankings.data(), top.data());
  Found found;
  for (TopK& best : top) found.rows.emplace_back(best.Sorted().begin(), best.Sorted().end());
  found.missed.assign(static_cast<size_t>(count), 0.0f);
  return found;
}

// The share of the exact rows' attention that was missed.
double Missed(const std::vector<Scored>& exact, const std::vector<Scored>& found) {
  double all = 0, kept = 0;
  for (const Scored& row : exact) {
    const double weight = std::exp(static_cast<double>(row.score) - exact.front().score);
    all += weight;
    for (const Scored& other : found) kept += other.index == row.index ? weight : 0;
  }
  return 1 - kept / all;
}

class ExactCentroidTest : public testing::TestWithParam<std::tuple<DType, int64_t>> {};

INSTANTIATE_TEST_SUITE_P(Types, ExactCentroidTest,
                         testing::Combine(testing::Values(DType::kF32, DType::kF16, DType::kBF16, DType::kI8),
                                          testing::Values<int64_t>(16, 64, 96, 128, 256)));

TEST_P(ExactCentroidTest, ProbingEverythingIsTheExactScan) {
  const auto [dtype, dim] = GetParam();
  StoredKeys keys(dtype, dim);
  AppendKeys(3001, 11, keys);
  const std::vector<float> queries = MakeQueries(7, dim, 12);
  const std::unique_ptr<KeyIndex> index = Build("centroid,max_miss=0", keys);
  for (const int64_t k : {1, 32, 500}) {
    const Search search{.k = k};
    EXPECT_TRUE(Probe(*index, keys, queries, search) == RunExact(keys, queries, search)) << "k " << k;
  }
}

TEST(CentroidTest, HiddenRowsAreNeverFound) {
  StoredKeys keys(DType::kF16, 64);
  AppendKeys(4000, 1, keys);
  const std::vector<float> queries = MakeQueries(6, 64, 2);
  const std::unique_ptr<KeyIndex> exact = Build("centroid,max_miss=0", keys), index = Build("centroid", keys);
  for (const auto& [begin, end] :
       std::vector<std::pair<int64_t, int64_t>>{{0, 1}, {1000, 1040}, {17, 3990}, {3999, 4000}}) {
    SCOPED_TRACE(testing::Message() << begin << " to " << end);
    const Search search{.row_begin = begin, .row_end = end};
    EXPECT_TRUE(Probe(*exact, keys, queries, search) == RunExact(keys, queries, search));
    const Found found = Probe(*index, keys, queries, search);
    for (const std::vector<Scored>& rows : found.rows) {
      EXPECT_EQ(static_cast<int64_t>(rows.size()), std::min<int64_t>(32, end - begin));
      for (const Scored& row : rows) EXPECT_TRUE(row.index >= 100 + begin && row.index < 100 + end) << row.index;
    }
  }
}

TEST(CentroidTest, EveryRankingThatRisesGivesTheExactScansRows) {
  StoredKeys keys(DType::kF16, 64);
  AppendKeys(3000, 21, keys);
  const std::vector<float> queries = MakeQueries(4, 64, 22);
  std::vector<float> penalties;
  for (int64_t r = 0; r < keys.size(); ++r) penalties.push_back(std::log2(static_cast<float>(keys.size() + 1 - r)));
  Search search;
  search.rankings = {{.scale = 0.5f},
                     {.scale = 2, .soft_cap = 5},
                     {.scale = 1, .addend = -3, .decay = 0.7f, .row_penalty = penalties.data()},
                     {.scale = 1, .soft_cap = 3, .addend = 2, .decay = 0.1f, .row_penalty = penalties.data()}};
  const Found exact = RunExact(keys, queries, search);
  EXPECT_TRUE(Probe(*Build("centroid,max_miss=0", keys), keys, queries, search) == exact);
  // With the default a little may be missed, and that is known.
  const Found found = Probe(*Build("centroid", keys), keys, queries, search);
  for (size_t q = 0; q < exact.rows.size(); ++q) {
    EXPECT_LE(Missed(exact.rows[q], found.rows[q]), found.missed_at_most[q]) << q;
  }
}

TEST(CentroidTest, FewRowsNeedNoClusters) {
  const std::vector<float> queries = MakeQueries(3, 64, 4);
  for (const int64_t rows : {1, 2, 15, 16, 17, 33, 100}) {
    SCOPED_TRACE(rows);
    StoredKeys keys(DType::kF16, 64);
    AppendKeys(rows, 3, keys);
    for (const char* spec : {"centroid", "centroid,cluster_rows=1000000", "centroid,outliers=1", "centroid,outliers=0",
                             "centroid,cluster_rows=1"}) {
      SCOPED_TRACE(spec);
      const std::unique_ptr<KeyIndex> index = Build(spec, keys);
      const Found found = Probe(*index, keys, queries), exact = RunExact(keys, queries);
      for (size_t q = 0; q < exact.rows.size(); ++q) EXPECT_EQ(found.rows[q].size(), exact.rows[q].size());
      const auto blob = index->Serialize();
      ASSERT_TRUE(blob.ok());
      auto loaded = LoadKeyIndex(Spec(spec), *blob, rows, 64);
      ASSERT_TRUE(loaded.ok()) << loaded.status();
      EXPECT_TRUE(Probe(**loaded, keys, queries) == found);
    }
  }
}

TEST(CentroidTest, EqualKeysGoToTheLowerRows) {
  StoredKeys keys(DType::kF16, 64);
  const std::vector<float> one = MakeQueries(1, 64, 5), other = MakeQueries(1, 64, 6);
  for (int64_t r = 0; r < 3000; ++r) keys.Append(r % 3 == 0 ? other.data() : one.data());
  const std::unique_ptr<KeyIndex> index = Build("centroid,max_miss=0", keys);
  EXPECT_TRUE(Probe(*index, keys, one) == RunExact(keys, one));
  EXPECT_TRUE(Probe(*index, keys, other) == RunExact(keys, other));
}

TEST(CentroidTest, HugeAndTinyKeysAreNoError) {
  for (const float size : {1e-38f, 1e-20f, 1e15f, 1e37f}) {
    SCOPED_TRACE(size);
    StoredKeys keys(DType::kF32, 64);
    std::vector<float> values = MakeQueries(1000, 64, 7);
    for (float& x : values) x *= size;
    for (int64_t r = 0; r < 1000; ++r) keys.Append(values.data() + r * 64);
    std::vector<float> queries = MakeQueries(3, 64, 8);
    if (size > 1) {
      for (float& x : queries) x /= size;
    }
    EXPECT_TRUE(Probe(*Build("centroid,max_miss=0", keys), keys, queries) == RunExact(keys, queries));
    for (const std::vector<Scored>& rows : Probe(*Build("centroid", keys), keys, queries).rows) {
      EXPECT_EQ(rows.size(), 32u);
    }
  }
}

TEST(CentroidTest, AKeyThatCannotBeReadIsAnError) {
  StoredKeys keys(DType::kF16, 64);
  AppendKeys(2000, 9, keys);
  const std::vector<float> queries = MakeQueries(2, 64, 10);
  const std::unique_ptr<KeyIndex> index = Build("centroid", keys);
  keys.FailFromNowOn();
  std::vector<TopK> top(2, TopK(32));
  const std::vector<Ranking> rankings(2);
  CentroidSearch search;
  CentroidCounts counts;
  EXPECT_EQ(
      search.Run(*index->AsCentroid(), {queries.data(), 2, rankings.data(), &keys, 0, 2000, 0, top.data()}, &counts)
          .code(),
      absl::StatusCode::kDataLoss);
}

// What a search says that it missed is right on average, and its bound holds for nineteen queries of twenty.
TEST(CentroidTest, TheStatedMissIsRight) {
  StoredKeys keys(DType::kF16, 64);
  AppendNoise(24576, 31, keys);
  const std::vector<float> queries = MakeQueries(200, 64, 32);
  for (const char* spec :
       {"centroid,max_miss=0.02,max_share=1", "centroid,max_miss=0.2,max_share=1", "centroid,max_miss=1"}) {
    SCOPED_TRACE(spec);
    const std::unique_ptr<KeyIndex> index = Build(spec, keys);
    const Found exact = RunExact(keys, queries);
    double stated = 0, missed = 0;
    int64_t in_bound = 0;
    CentroidCounts counts;
    for (size_t q = 0; q < exact.rows.size(); ++q) {
      const std::vector<float> query(queries.begin() + static_cast<int64_t>(q) * 64,
                                     queries.begin() + static_cast<int64_t>(q + 1) * 64);
      const Found found = Probe(*index, keys, query);
      const double miss = Missed(exact.rows[q], found.rows[0]);
      stated += found.missed[0];
      missed += miss;
      in_bound += miss <= found.missed_at_most[0] ? 1 : 0;
      counts.probed += found.counts.probed;
      counts.searched += found.counts.searched;
    }
    const double n = static_cast<double>(exact.rows.size());
    std::printf("%s: probed %.4f of the rows, stated miss %.4f, true miss %.4f, in bound %.3f\n", spec,
                static_cast<double>(counts.probed) / static_cast<double>(counts.searched), stated / n, missed / n,
                static_cast<double>(in_bound) / n);
    EXPECT_GE(static_cast<double>(in_bound), 0.95 * n);
    EXPECT_LE(std::fabs(stated - missed) / n, 0.01 + 0.3 * missed / n);
    EXPECT_LE(missed / n, index->AsCentroid()->shape().max_miss + 0.01);
  }
}

TEST(CentroidTest, TheShareThatIsProbedIsCapped) {
  StoredKeys keys(DType::kF16, 64);
  AppendNoise(16384, 41, keys);
  const std::vector<float> queries = MakeQueries(1, 64, 42);
  for (const double share : {0.1, 0.25}) {
    const std::unique_ptr<KeyIndex> index = Build("centroid,max_miss=0.001,max_share=" + std::to_string(share), keys);
    const Found found = Probe(*index, keys, queries);
    const double probed = static_cast<double>(found.counts.probed) / static_cast<double>(found.counts.searched);
    EXPECT_LE(probed, share + 0.01);
    EXPECT_GE(probed, share - 0.02);
    for (const float missed : found.missed) EXPECT_GT(missed, 0.001f);
  }
}

TEST(CentroidTest, SearchesOnManyThreadsAgree) {
  StoredKeys keys(DType::kF16, 128);
  AppendKeys(8000, 51, keys);
  const std::vector<float> queries = MakeQueries(6, 128, 52);
  const std::unique_ptr<KeyIndex> index = Build("centroid", keys);
  const Found expected = Probe(*index, keys, queries);
  std::atomic<int> bad{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int round = 0; round < 5; ++round) bad += Probe(*index, keys, queries) == expected ? 0 : 1;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(bad, 0);
}

// Builds on other threads beside this one, and searches by lesser kernels, give the same.
TEST(CentroidTest, TheBlobDoesNotDependOnThreads) {
  StoredKeys keys(DType::kF16, 64);
  AppendKeys(8000, 61, keys);
  const std::string expected = *Build("centroid", keys)->Serialize();
  std::vector<std::string> blobs(3);
  std::vector<std::thread> threads;
  for (std::string& blob : blobs) threads.emplace_back([&] { blob = *Build("centroid", keys)->Serialize(); });
  for (std::thread& thread : threads) thread.join();
  for (const std::string& blob : blobs) EXPECT_TRUE(blob == expected);
}

std::string WithChecksum(std::string blob) {
  const uint32_t sum = Checksum32(blob.data() + 16, blob.size() - 16, Checksum32(blob.data(), 12));
  std::memcpy(blob.data() + 12, &sum, sizeof(sum));
  return blob;
}

// A blob whose checksum is right is still taken for the work of a stranger.
TEST(CentroidTest, ASoundBlobOfNonsenseIsRefused) {
  StoredKeys keys(DType::kF16, 64);
  AppendKeys(2000, 71, keys);
  const std::string blob = *Build("centroid", keys)->Serialize();
  ASSERT_EQ(WithChecksum(blob), blob);
  const auto load = [&](const std::string& changed) {
    return LoadKeyIndex(Spec("centroid"), WithChecksum(changed), 2000, 64).status().code();
  };
  const auto with = [&](size_t at, auto number) {
    std::string changed = blob;
    std::memcpy(changed.data() + at, &number, sizeof(number));
    return changed;
  };
  constexpr auto kLoss = absl::StatusCode::kDataLoss, kOther = absl::StatusCode::kFailedPrecondition;
  EXPECT_EQ(load(blob), absl::StatusCode::kOk);
  EXPECT_EQ(load(with(0, 'X')), kOther);
  EXPECT_EQ(load(with(8, uint32_t{2})), kOther);
  for (const size_t at : {16u, 24u}) EXPECT_EQ(load(with(at, int64_t{2001})), kOther);
  EXPECT_EQ(load(with(48, int32_t{33})), kOther);
  EXPECT_EQ(load(with(52, 0.5f)), kOther);
  for (const int64_t count : {int64_t{-1}, int64_t{0}, int64_t{1} << 62, int64_t{2001}, int64_t{61}}) {
    EXPECT_EQ(load(with(40, count)), kLoss) << count;
  }
  for (const int64_t count : {int64_t{-1}, int64_t{2000}, int64_t{1} << 62, int64_t{11}}) {
    EXPECT_EQ(load(with(32, count)), kLoss) << count;
  }
  // Row numbers: out of range, twice.
  int32_t second;
  std::memcpy(&second, blob.data() + 60, sizeof(second));
  for (const int32_t row : {-1, 2000, second}) EXPECT_EQ(load(with(56, row)), kLoss) << row;
  // Where clusters begin, and how wide they are.
  int64_t clusters;
  std::memcpy(&clusters, blob.data() + 40, sizeof(clusters));
  const size_t begins = 56 + 2000 * 4, radii = begins + (static_cast<size_t>(clusters) + 1) * 4;
  for (const int32_t begin : {-1, 0, 5, 2000, 1 << 30}) EXPECT_EQ(load(with(begins, begin)), kLoss) << begin;
  for (const float radius : {-1.0f, std::nanf(""), std::numeric_limits<float>::infinity()}) {
    EXPECT_EQ(load(with(radii, radius)), kLoss) << radius;
  }
  EXPECT_EQ(load(blob + "x"), kLoss);
  EXPECT_EQ(load(blob.substr(0, blob.size() - 1)), kLoss);
}

TEST(CentroidTest, SpecsAreParsedAndPrinted) {
  for (const char* text : {"centroid", "centroid,cluster_rows=64", "centroid,max_miss=0", "centroid,outliers=0.01",
                           "centroid,cluster_rows=16,outliers=0,max_miss=0.025,max_share=1"}) {
    EXPECT_EQ(FormatIndexSpec(Spec(text)), text);
  }
  for (const char* text : {"centroid,max_miss=1.5", "centroid,max_miss=-0.1", "centroid,max_miss=nan",
                           "centroid,max_miss=", "centroid,max_miss=0.1,max_miss=0.1", "centroid,lists=3",
                           "centroid,cluster_rows=0", "ivf,max_miss=0.1", "centroid,max_miss"}) {
    EXPECT_EQ(ParseIndexSpec(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
  EXPECT_NE(std::string(ParseIndexSpec("centroid,lists=3").status().message()).find("max_miss"), std::string::npos);
  EXPECT_NE(std::string(ParseIndexSpec("centroid,max_miss=2").status().message()).find("from 0 to 1"),
            std::string::npos);
}

TEST(ClusteringTest, EveryRowHasAClusterAndNoneIsEmpty) {
  StoredKeys keys(DType::kF32, 32);
  AppendKeys(5000, 81, keys);
  for (const int64_t cluster_rows : {1, 7, 32, 5000, 100000}) {
    const auto clustering = ClusterKeys(keys.decoded(), keys.size(), 32, cluster_rows);
    ASSERT_TRUE(clustering.ok()) << clustering.status();
    std::vector<int64_t> sizes(static_cast<size_t>(clustering->count), 0);
    ASSERT_EQ(clustering->of_row.size(), 5000u);
    for (const int32_t cluster : clustering->of_row) ++sizes.at(static_cast<size_t>(cluster));
    EXPECT_GT(*std::min_element(sizes.begin(), sizes.end()), 0);
    if (cluster_rows > 1) {
      EXPECT_NEAR(static_cast<double>(clustering->count), std::max(1.0, 5000.0 / static_cast<double>(cluster_rows)),
                  0.25 * 5000.0 / static_cast<double>(cluster_rows) + 1);
    }
  }
}

TEST(CodeScorerTest, ProductsAreThoseOfTheKeys) {
  StoredKeys keys(DType::kF32, 96);
  AppendKeys(512, 91, keys);
  const std::vector<float> queries = MakeQueries(9, 96, 92);
  KeyCodes codes(96);
  codes.EncodeAll(keys.rows());
  std::vector<float> dots(static_cast<size_t>(9 * keys.size()), -1.0f);
  std::vector<BlockRange> blocks;
  AppendByChunk(3, 32, blocks);
  ASSERT_EQ(blocks.size(), 2u);
  CodeScorer scorer;
  scorer.Begin(queries.data(), 9, codes);
  scorer.Score(codes, blocks, dots.data(), keys.size());
  for (int64_t q = 0; q < 9; ++q) {
    for (int64_t r = 0; r < keys.size(); ++r) {
      double exact = 0, query_norm = 0, key_norm = 0;
      for (int64_t d = 0; d < 96; ++d) {
        const double x = queries[static_cast<size_t>(q * 96 + d)], y = keys.decoded()[r * 96 + d];
        exact += x * y, query_norm += x * x, key_norm += y * y;
      }
      const float dot = dots[static_cast<size_t>(q * keys.size() + r)];
      if (r < 48) {
        EXPECT_EQ(dot, -1.0f);
      } else {
        EXPECT_NEAR(dot, exact, 0.02 * std::sqrt(query_norm * key_norm)) << q << " " << r;
      }
    }
  }
}

// Against the integral, summed in double precision.
TEST(MissEstimateTest, AttentionAboveIsTheIntegral) {
  for (const double spread : {0.01, 0.3, 1.0, 2.5, 6.0}) {
    for (const double distance : {-2.0, 0.0, 0.5, 1.7, 3.0, 5.0}) {
      double sum = 0;
      constexpr int kSteps = 200000;
      const double step = 30.0 / kSteps;
      for (int i = 0; i < kSteps; ++i) {
        const double z = distance + (i + 0.5) * step;  // logit - threshold = (z - distance) * spread
        sum += std::exp((z - distance) * spread - z * z / 2) * step;
      }
      const double exact = 40 * sum / std::sqrt(2 * M_PI);
      const double got = AttentionAbove(40, static_cast<float>(distance), static_cast<float>(spread));
      EXPECT_NEAR(got, exact, 2e-3 * exact) << "spread " << spread << ", distance " << distance;
    }
  }
  EXPECT_TRUE(std::isfinite(AttentionAbove(40, -1000, 30)));
  EXPECT_EQ(AttentionAbove(40, 1000, 1), AttentionAbove(40, 1000, 1));
  EXPECT_FLOAT_EQ(MissBound95(0, 0.03f), 0.002f);
  EXPECT_FLOAT_EQ(MissBound95(0.9f, 0), 1);
}

}  // namespace
}  // namespace mneme
