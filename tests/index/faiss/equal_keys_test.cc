// SPDX-License-Identifier: Apache-2.0
// Indices over rows of which many have equal or nearly equal keys, as the first layer's keys before rotation have.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "base/checksum.h"
#include "gtest/gtest.h"
#include "index/faiss/faiss_index.h"
#include "index/faiss/row_groups.h"
#include "index/key_index.h"

namespace mneme {
namespace {

constexpr int64_t kRows = 2048;
constexpr int64_t kDim = 32;
constexpr int64_t kLoneRow = 1234;  // where one row differs from all others

using Keys = std::vector<float>;  // [rows, kDim]

IndexSpec Spec(absl::string_view text) {
  return *ParseIndexSpec(text);
}

Keys Random(int64_t rows, uint32_t seed, float size = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Keys keys(static_cast<size_t>(rows * kDim));
  for (float& x : keys) x = size * normal(random);
  return keys;
}

// kRows rows; row r is number `which(r)` of `keys`.
template <typename Which>
Keys Repeat(const Keys& keys, Which which) {
  Keys repeated;
  for (int64_t r = 0; r < kRows; ++r) {
    const float* key = keys.data() + which(r) * kDim;
    repeated.insert(repeated.end(), key, key + kDim);
  }
  return repeated;
}

// Row r is a random one of the keys, plus noise, times what `scale` gives.
template <typename Scale>
Keys Clusters(int64_t clusters, float noise, Scale scale) {
  const Keys centers = Random(clusters, 11), offsets = Random(kRows, 12, noise);
  std::mt19937 random(13);
  Keys keys = Repeat(centers, [&](int64_t) { return static_cast<int64_t>(random()) % clusters; });
  for (size_t i = 0; i < keys.size(); ++i) {
    keys[i] = (keys[i] + offsets[i]) * scale(static_cast<int64_t>(i) / kDim);
  }
  return keys;
}

Keys Zipf(int64_t distinct) {
  std::mt19937 random(5);
  std::uniform_real_distribution<double> uniform;
  return Repeat(Random(distinct, 6), [&](int64_t) {
    return static_cast<int64_t>(std::exp(uniform(random) * std::log(static_cast<double>(distinct)))) - 1;
  });
}

Keys EqualUpToSign() {
  Keys keys = Repeat(Random(300, 7), [](int64_t r) { return r % 300; });
  for (size_t i = 0; i < keys.size(); ++i) {
    if (static_cast<int64_t>(i) / kDim / 300 % 2 == 1) keys[i] = -keys[i];
  }
  return keys;
}

Keys ZerosOfBothSigns() {
  std::mt19937 random(8);
  Keys keys(static_cast<size_t>(kRows * kDim));
  for (float& x : keys) x = random() % 2 == 0 ? 0.0f : -0.0f;
  return keys;
}

const std::map<std::string, Keys>& Patterns() {
  const auto one = [](int64_t) { return 1.0f; };
  static const auto* const patterns = new std::map<std::string, Keys>{
      {"all different", Random(kRows, 1)},
      {"all identical", Repeat(Random(1, 2), [](int64_t) { return 0; })},
      {"5 distinct", Repeat(Random(5, 3), [](int64_t r) { return r * r % 5; })},
      {"50 distinct", Repeat(Random(50, 3), [](int64_t r) { return r % 50; })},
      {"600 distinct", Repeat(Random(600, 3), [](int64_t r) { return r % 600; })},
      {"one equal pair", Repeat(Random(kRows, 4), [](int64_t r) { return r == 1000 ? 10 : r; })},
      {"Zipf's law", Zipf(1500)},
      {"zero", Keys(static_cast<size_t>(kRows * kDim))},
      {"zeros of both signs", ZerosOfBothSigns()},
      {"equal up to sign", EqualUpToSign()},
      {"one among equal ones", Repeat(Random(2, 9), [](int64_t r) { return r == kLoneRow ? 1 : 0; })},
      {"one direction", Clusters(1, 0, [](int64_t r) { return 0.5f + static_cast<float>(r) / kRows; })},
      {"20 directions", Clusters(20, 0, [](int64_t r) { return 0.5f + static_cast<float>(r) / kRows; })},
      {"near-equal", Clusters(1, 1e-3f, one)},
      {"near-equal to the last bit", Clusters(1, 1e-7f, one)},
      {"30 near-equal clusters", Clusters(30, 1e-3f, one)},
      {"30 clusters near-equal to the last bit", Clusters(30, 1e-7f, one)},
      {"tiny", Random(kRows, 10, 1e-25f)},
      {"one among near-equal ones",
       [] {
         Keys keys = Clusters(1, 1e-3f, [](int64_t) { return 1.0f; });
         const Keys lone = Random(1, 14);
         std::copy(lone.begin(), lone.end(), keys.begin() + kLoneRow * kDim);
         return keys;
       }()},
  };
  return *patterns;
}

double CpuSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double Dot(const float* a, const float* b) {
  double dot = 0;
  for (int64_t d = 0; d < kDim; ++d) dot += static_cast<double>(a[d]) * b[d];
  return dot;
}

int64_t FirstRow(const KeyIndex& index, int64_t number) {
  return index.groups() == nullptr ? number : index.groups()->Rows(number).front();
}

// Queries are the key of kLoneRow, keys spread over the rows, both at size 1, and random ones.
Keys QueriesFor(const Keys& keys) {
  Keys queries;
  const auto add = [&](int64_t row) {
    const float* key = keys.data() + row * kDim;
    float size = 0;
    for (int64_t d = 0; d < kDim; ++d) size = std::max(size, std::abs(key[d]));
    for (int64_t d = 0; d < kDim; ++d) queries.push_back(size > 0 ? key[d] / size : 0.0f);
  };
  add(kLoneRow);
  for (int64_t r = 0; r < kRows; r += 41) add(r);
  const Keys random = Random(20, 99);
  queries.insert(queries.end(), random.begin(), random.end());
  return queries;
}

// The shares of the best and of the ten best distinct keys, over all queries, whose scores are reached by 64
// candidates, but for `tolerance` times the largest.
struct Recall {
  double best = 0;
  double ten = 0;
};

Recall Measure(const KeyIndex& index, const Keys& keys, double tolerance) {
  constexpr int64_t kFetch = 64;
  const Keys queries = QueriesFor(keys);
  const RowGroups groups = RowGroups::OfKeys(keys.data(), kRows, kDim);
  const auto count = static_cast<int64_t>(queries.size()) / kDim;
  const auto wanted = static_cast<size_t>(std::min<int64_t>(groups.groups(), 10));
  std::vector<int64_t> found(static_cast<size_t>(count * kFetch));
  EXPECT_TRUE(index.Search(queries.data(), count, kFetch, found.data()).ok());
  int64_t best_hits = 0, ten_hits = 0;
  for (int64_t q = 0; q < count; ++q) {
    std::vector<double> scores, reached;  // scores: of each group
    double size = 0;
    for (int64_t g = 0; g < groups.groups(); ++g) {
      scores.push_back(Dot(queries.data() + q * kDim, keys.data() + groups.Rows(g).front() * kDim));
      size = std::max(size, std::abs(scores.back()));
    }
    std::set<int64_t> seen;
    for (int64_t i = 0; i < kFetch; ++i) {
      const int64_t number = found[static_cast<size_t>(q * kFetch + i)];
      if (number < 0) continue;
      EXPECT_TRUE(seen.insert(number).second) << "found twice: " << number;
      reached.push_back(scores[static_cast<size_t>(number)]);
    }
    std::sort(scores.rbegin(), scores.rend());
    std::sort(reached.rbegin(), reached.rend());
    for (size_t i = 0; i < std::min(wanted, reached.size()); ++i) {
      if (reached[i] < scores[i] - tolerance * size) continue;
      ++ten_hits;
      if (i == 0) ++best_hits;
    }
  }
  return {static_cast<double>(best_hits) / static_cast<double>(count),
          static_cast<double>(ten_hits) / static_cast<double>(count * static_cast<int64_t>(wanted))};
}

// Whether the key of kLoneRow as a query finds its row among the candidates.
bool FindsLoneRow(const KeyIndex& index, const Keys& keys) {
  constexpr int64_t kFetch = 64;
  std::vector<int64_t> found(kFetch);
  EXPECT_TRUE(index.Search(keys.data() + kLoneRow * kDim, 1, kFetch, found.data()).ok());
  return std::any_of(found.begin(), found.end(),
                     [&](int64_t number) { return number >= 0 && FirstRow(index, number) == kLoneRow; });
}

class EqualKeysTest : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Kinds, EqualKeysTest,
                         testing::Values("flat", "ivf", "ivfpq", "hnsw", "ivf,lists=1500", "faiss:SQ8",
                                         "faiss:IVF64,SQ8", "faiss:IVF64,PQ8", "faiss:HNSW16,SQ8"));

// Random keys have no clusters, so that lists find few of the ten best even where all keys differ: others are held to
// that.
TEST_P(EqualKeysTest, AreBuiltAsFastAsOthersAndFound) {
  double seconds = 0;
  const auto build = [&](const Keys& keys) {
    const double start = CpuSeconds();
    auto index = BuildKeyIndex(Spec(GetParam()), keys.data(), kRows, kDim);
    seconds = CpuSeconds() - start;
    EXPECT_TRUE(index.ok()) << index.status();
    return *std::move(index);
  };
  const Keys different = Random(kRows, 1);
  const Recall least = Measure(*build(different), different, 1e-6);
  const double most_seconds = 2 * seconds + 0.05;
  EXPECT_GE(least.best, 0.9);
  for (const auto& [name, keys] : Patterns()) {
    SCOPED_TRACE(name);
    const auto index = build(keys);
    // Of nearly equal keys one is as good as another, and codes of eight bits do not tell them apart.
    const bool near = absl::StrContains(name, "near-equal");
    const bool equal_codes = near && absl::StrContains(GetParam(), "SQ");
    const Recall recall = Measure(*index, keys, near ? 3e-3 : 1e-6);
    std::printf("%-16s %-40s built in %6.1f ms, recall of the best %.3f, of ten %.3f\n", GetParam(), name.c_str(),
                1e3 * seconds, recall.best, recall.ten);
    EXPECT_LE(seconds, (equal_codes ? 3 : 1) * most_seconds);
    EXPECT_EQ(index->rows(), kRows);
    EXPECT_GE(recall.best, least.best - (equal_codes ? 0.2 : near ? 0.1 : 0.07));
    EXPECT_GE(recall.ten, least.ten - (equal_codes ? 0.2 : 0.1));
    if (name.starts_with("one among")) {
      EXPECT_TRUE(FindsLoneRow(*index, keys));
    }
  }
}

TEST_P(EqualKeysTest, BlobGivesTheSameResults) {
  const IndexSpec spec = Spec(GetParam());
  for (const auto& [name, keys] : Patterns()) {
    SCOPED_TRACE(name);
    const RowGroups groups = RowGroups::OfKeys(keys.data(), kRows, kDim);
    auto index = BuildKeyIndex(spec, keys.data(), kRows, kDim);
    ASSERT_TRUE(index.ok()) << index.status();
    ASSERT_EQ((*index)->groups() != nullptr, groups.groups() < kRows);
    const std::string blob = *(*index)->Serialize();
    auto loaded = LoadKeyIndex(spec, blob, kRows, kDim);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(*(*loaded)->Serialize(), blob);
    EXPECT_EQ((*loaded)->MemoryBytes(), (*index)->MemoryBytes());
    const Keys queries = QueriesFor(keys);
    const auto count = static_cast<int64_t>(queries.size()) / kDim;
    std::vector<int64_t> found(static_cast<size_t>(count * 30)), again(found.size());
    ASSERT_TRUE((*index)->Search(queries.data(), count, 30, found.data()).ok());
    ASSERT_TRUE((*loaded)->Search(queries.data(), count, 30, again.data()).ok());
    EXPECT_EQ(found, again);
    if ((*index)->groups() != nullptr) {
      EXPECT_EQ((*loaded)->groups()->numbers(), groups.numbers());
      EXPECT_LT(*std::max_element(found.begin(), found.end()), groups.groups());
    }
  }
}

// Blobs as they were before equal rows were grouped stay readable.
TEST_P(EqualKeysTest, BlobsWithoutGroupsAreRead) {
  const Keys& keys = Patterns().at("600 distinct");
  const IndexSpec spec = Spec(GetParam());
  auto old = BuildFaissIndex(spec, keys.data(), kRows, kDim);
  ASSERT_TRUE(old.ok()) << old.status();
  auto loaded = LoadKeyIndex(spec, *(*old)->Serialize(), kRows, kDim);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ((*loaded)->groups(), nullptr);
  EXPECT_EQ((*loaded)->rows(), kRows);
}

// What cannot be built over as many different rows is refused for equal ones, too.
TEST(EqualKeysSpecTest, RefusalsDoNotDependOnTheKeys) {
  const Keys& keys = Patterns().at("50 distinct");
  const auto code = [&](const char* spec, int64_t rows) {
    return BuildKeyIndex(Spec(spec), keys.data(), rows, kDim).status().code();
  };
  EXPECT_EQ(code("ivf,lists=2049", kRows), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code("ivf,lists=2048", kRows), absl::StatusCode::kOk);
  EXPECT_EQ(code("ivfpq", 255), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code("ivfpq", 256), absl::StatusCode::kOk);
  EXPECT_EQ(code("ivfpq,pq_bytes=5", kRows), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code("hnsw,degree=1", kRows), absl::StatusCode::kInvalidArgument);
}

class GroupedBlobTest : public testing::Test {
 protected:
  static constexpr size_t kNumbersAt = 40;

  static std::string WithChecksum(std::string blob) {
    const uint32_t sum = Checksum32(blob.data() + 16, blob.size() - 16, Checksum32(blob.data(), 12));
    std::memcpy(blob.data() + 12, &sum, sizeof(sum));
    return blob;
  }
  template <typename T>
  std::string With(size_t at, T value) const {
    std::string blob = blob_;
    std::memcpy(blob.data() + at, &value, sizeof(value));
    return WithChecksum(blob);
  }
  static absl::StatusCode Code(const std::string& blob, const char* spec = "ivf") {
    return LoadKeyIndex(Spec(spec), blob, kRows, kDim).status().code();
  }

  const Keys& keys_ = Patterns().at("600 distinct");
  const std::string blob_ = *(*BuildKeyIndex(Spec("ivf"), keys_.data(), kRows, kDim))->Serialize();
};

TEST_F(GroupedBlobTest, DamageIsDataLoss) {
  ASSERT_EQ(Code(blob_), absl::StatusCode::kOk);
  std::mt19937 random(3);
  std::vector<size_t> places(100);
  for (size_t i = 0; i < places.size(); ++i) places[i] = i;
  for (int i = 0; i < 300; ++i) places.push_back(random() % blob_.size());
  for (const size_t place : places) {
    std::string damaged = blob_;
    damaged[place] = static_cast<char>(damaged[place] ^ (1 << random() % 8));
    ASSERT_EQ(Code(damaged), absl::StatusCode::kDataLoss) << "byte " << place;
  }
  for (size_t length = 0; length < blob_.size(); length += 1 + length / 4) {
    ASSERT_EQ(Code(blob_.substr(0, length)), absl::StatusCode::kDataLoss) << "length " << length;
    if (length >= kNumbersAt) {
      ASSERT_EQ(Code(WithChecksum(blob_.substr(0, length))), absl::StatusCode::kDataLoss) << "length " << length;
    }
  }
  EXPECT_EQ(Code(WithChecksum(blob_ + "x")), absl::StatusCode::kDataLoss);
}

TEST_F(GroupedBlobTest, WrongNumbersUnderARightChecksumAreDataLoss) {
  EXPECT_EQ(WithChecksum(blob_), blob_);
  for (const int32_t number : {-1, INT32_MIN, INT32_MAX, 1, 600, 2048}) {
    EXPECT_EQ(Code(With(kNumbersAt, number)), absl::StatusCode::kDataLoss) << number;
  }
  EXPECT_EQ(Code(With(kNumbersAt + 4, int32_t{2})), absl::StatusCode::kDataLoss);  // group 1 comes after group 2
  EXPECT_EQ(Code(With(kNumbersAt + 4 * 2047, int32_t{600})), absl::StatusCode::kDataLoss);
  for (const int64_t groups : {int64_t{-1}, int64_t{0}, int64_t{599}, int64_t{601}, kRows, INT64_MAX, INT64_MIN}) {
    EXPECT_EQ(Code(With(32, groups)), absl::StatusCode::kDataLoss) << groups;
  }
}

TEST_F(GroupedBlobTest, AnotherIndexIsRefused) {
  constexpr auto kOther = absl::StatusCode::kFailedPrecondition;
  EXPECT_EQ(Code(blob_, "hnsw"), kOther);
  EXPECT_EQ(Code(blob_, "ivf,lists=7"), kOther);
  EXPECT_EQ(Code(With(8, uint32_t{2})), kOther);
  EXPECT_EQ(Code(With(16, kRows + 1)), kOther);
  EXPECT_EQ(Code(With(24, kDim + 1)), kOther);
  EXPECT_EQ(LoadKeyIndex(Spec("ivf"), blob_, kRows - 1, kDim).status().code(), kOther);
  EXPECT_EQ(LoadKeyIndex(Spec("ivf"), blob_, kRows, kDim * 2).status().code(), kOther);
  EXPECT_TRUE(LoadKeyIndex(Spec("ivf,probes=3"), blob_, kRows, kDim).ok());
}

TEST(RowGroupsTest, AreThoseOfEqualKeys) {
  for (const auto& [name, keys] : Patterns()) {
    SCOPED_TRACE(name);
    const RowGroups groups = RowGroups::OfKeys(keys.data(), kRows, kDim);
    ASSERT_EQ(groups.rows(), kRows);
    std::map<Keys, int64_t> numbers;  // -0 == 0
    for (int64_t r = 0; r < kRows; ++r) {
      const Keys key(keys.begin() + r * kDim, keys.begin() + (r + 1) * kDim);
      const int64_t number = numbers.emplace(key, static_cast<int64_t>(numbers.size())).first->second;
      ASSERT_EQ(groups.numbers()[static_cast<size_t>(r)], number) << r;
    }
    ASSERT_EQ(groups.groups(), static_cast<int64_t>(numbers.size()));
    int64_t rows = 0;
    for (int64_t g = 0; g < groups.groups(); ++g) {
      const absl::Span<const int32_t> of_group = groups.Rows(g);
      ASSERT_TRUE(std::is_sorted(of_group.begin(), of_group.end()));
      for (const int32_t row : of_group) ASSERT_EQ(groups.numbers()[static_cast<size_t>(row)], g);
      rows += static_cast<int64_t>(of_group.size());
    }
    EXPECT_EQ(rows, kRows);
  }
}

}  // namespace
}  // namespace mneme
