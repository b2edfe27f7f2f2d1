// SPDX-License-Identifier: Apache-2.0
#include "index/key_index.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "base/checksum.h"
#include "gtest/gtest.h"
#include "index/top_k.h"

namespace mneme {
namespace {

IndexSpec Spec(absl::string_view text) {
  auto spec = ParseIndexSpec(text);
  EXPECT_TRUE(spec.ok()) << text << ": " << spec.status();
  return spec.ok() ? *spec : IndexSpec();
}

struct Attention {
  int64_t rows = 0;
  int64_t queries = 0;
  int64_t dim = 0;
  std::vector<float> keys;    // [rows, dim]
  std::vector<float> values;  // the queries, [queries, dim]
};

// What keys and queries of attention look like: keys in clusters of uneven size, spread and norm that change
// slowly along the text, a few channels with a huge value that all keys share; queries around a mean of their own,
// partly pulled towards directions in which keys lie.
Attention MakeAttention(int64_t rows, int64_t queries, int64_t dim, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform;
  Attention data{rows, queries, dim, {}, {}};
  const auto vector = [&](float size) {
    std::vector<float> v(static_cast<size_t>(dim));
    for (float& x : v) x = size * normal(random);
    return v;
  };
  constexpr size_t kClusters = 200;
  std::vector<std::vector<float>> centers;
  std::vector<float> spreads;
  for (size_t c = 0; c < kClusters; ++c) {
    centers.push_back(vector(0.5f + uniform(random)));
    spreads.push_back(0.3f + 0.7f * uniform(random));
  }
  std::vector<float> offset(static_cast<size_t>(dim), 0.0f);
  for (int i = 0; i < 3; ++i) offset[random() % offset.size()] = 15.0f * (i % 2 == 0 ? 1.0f : -1.0f);
  size_t cluster = 0;
  for (int64_t r = 0; r < rows; ++r) {
    if (random() % 3 == 0) {
      const float u = uniform(random);
      cluster = static_cast<size_t>(u * u * kClusters) % kClusters;
    }
    const float norm = std::exp(0.25f * normal(random));
    for (size_t d = 0; d < offset.size(); ++d) {
      data.keys.push_back(offset[d] + norm * (centers[cluster][d] + spreads[cluster] * normal(random)));
    }
  }
  const std::vector<float> query_mean = vector(1.0f);
  for (int64_t q = 0; q < queries; ++q) {
    const std::vector<float>& toward = centers[random() % kClusters];
    const std::vector<float>& also = centers[random() % kClusters];
    for (size_t d = 0; d < offset.size(); ++d) {
      data.values.push_back(query_mean[d] + 0.6f * toward[d] + 0.3f * also[d] + 0.8f * normal(random));
    }
  }
  return data;
}

std::vector<int64_t> BestRows(const Attention& data, int64_t query, int64_t k) {
  TopK top(k);
  for (int64_t r = 0; r < data.rows; ++r) {
    float dot = 0;
    for (int64_t d = 0; d < data.dim; ++d) dot += data.keys[r * data.dim + d] * data.values[query * data.dim + d];
    top.Push(dot, r);
  }
  std::vector<int64_t> rows;
  for (const Scored& scored : top.Sorted()) rows.push_back(scored.index);
  return rows;
}

// How many of the k best rows are among the `fetch` found, over all queries.
double Recall(const KeyIndex& index, const Attention& data, int64_t k, int64_t fetch) {
  std::vector<int64_t> found(static_cast<size_t>(data.queries * fetch));
  EXPECT_TRUE(index.Search(data.values.data(), data.queries, fetch, found.data()).ok());
  int64_t hits = 0;
  for (int64_t q = 0; q < data.queries; ++q) {
    const auto begin = found.begin() + q * fetch;
    for (const int64_t row : BestRows(data, q, k)) hits += std::count(begin, begin + fetch, row);
  }
  return static_cast<double>(hits) / static_cast<double>(data.queries * k);
}

std::vector<int64_t> SearchAll(const KeyIndex& index, const Attention& data, int64_t fetch) {
  std::vector<int64_t> found(static_cast<size_t>(data.queries * fetch), -7);
  EXPECT_TRUE(index.Search(data.values.data(), data.queries, fetch, found.data()).ok());
  return found;
}

const Attention& Large() {
  static const Attention data = MakeAttention(32768, 100, 64, 42);
  return data;
}

// For structures that are slow to build and only variants of another.
const Attention& Medium() {
  static const Attention data = MakeAttention(8192, 100, 64, 43);
  return data;
}

const Attention& Small() {
  static const Attention data = MakeAttention(2000, 20, 16, 7);
  return data;
}

// A gpu kind is tested where it then runs: on a device, or on the host if there is none. One that is not built in is
// not.
#define SKIP_UNLESS_BUILT_IN(spec)                                                                \
  if (const absl::Status parsed = ParseIndexSpec(spec).status(); absl::IsUnimplemented(parsed)) { \
    GTEST_SKIP() << parsed;                                                                       \
  }

struct Case {
  const char* spec;
  int64_t fetch;  // for 32 wanted
  double recall;  // at least
};

class KeyIndexRecallTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override { SKIP_UNLESS_BUILT_IN(GetParam().spec); }
};

INSTANTIATE_TEST_SUITE_P(Kinds, KeyIndexRecallTest,
                         testing::Values(Case{"centroid", 32, 0.9}, Case{"flat", 32, 1.0}, Case{"ivf", 32, 0.9},
                                         Case{"ivfpq", 128, 0.8}, Case{"hnsw", 32, 0.9}, Case{"faiss:SQ8", 32, 0.9},
                                         Case{"faiss:IVF128,SQ8,probes=48", 32, 0.85},
                                         Case{"faiss:HNSW16,SQ8", 64, 0.85}));
INSTANTIATE_TEST_SUITE_P(GpuKinds, KeyIndexRecallTest,
                         testing::Values(Case{"gpu-flat", 32, 0.999}, Case{"gpu-ivf", 32, 0.9},
                                         Case{"gpu-ivfpq", 128, 0.8}, Case{"gpu-ivfpq,pq_bytes=64", 128, 0.8}));

TEST_P(KeyIndexRecallTest, FindsAttentionsBestRows) {
  const Attention& data = absl::StartsWith(GetParam().spec, "faiss:HNSW") ? Medium() : Large();
  const auto start = std::chrono::steady_clock::now();
  auto index = BuildKeyIndex(Spec(GetParam().spec), data.keys.data(), data.rows, data.dim);
  ASSERT_TRUE(index.ok()) << index.status();
  const auto built = std::chrono::steady_clock::now();
  const double recall = Recall(**index, data, 32, GetParam().fetch);
  std::printf("%-28s recall of the best 32 among %ld: %.3f (%zu bytes a row, built in %.1f s, %s)\n", GetParam().spec,
              static_cast<long>(GetParam().fetch), recall, (*index)->MemoryBytes() / static_cast<size_t>(data.rows),
              std::chrono::duration<double>(built - start).count(), (*index)->Where().c_str());
  EXPECT_GE(recall, GetParam().recall);
  EXPECT_EQ((*index)->rows(), data.rows);
  EXPECT_EQ((*index)->dim(), data.dim);
}

class KeyIndexKindTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override { SKIP_UNLESS_BUILT_IN(GetParam()); }
};

INSTANTIATE_TEST_SUITE_P(Kinds, KeyIndexKindTest,
                         testing::Values("centroid", "flat", "ivf", "ivfpq", "hnsw", "faiss:SQfp16", "faiss:SQ4",
                                         "faiss:IVF20,SQ6", "faiss:HNSW8,SQ8", "faiss:IVF16,PQ4", "faiss:Flat"));
INSTANTIATE_TEST_SUITE_P(GpuKinds, KeyIndexKindTest,
                         testing::Values("gpu-flat", "gpu-ivf", "gpu-ivfpq", "gpu-ivf,lists=20,probes=20",
                                         "gpu-ivfpq,pq_bytes=16", "gpu-ivf,scratch_mib=1"));

TEST_P(KeyIndexKindTest, BlobGivesTheSameResults) {
  const Attention& data = Small();
  const IndexSpec spec = Spec(GetParam());
  auto index = BuildKeyIndex(spec, data.keys.data(), data.rows, data.dim);
  ASSERT_TRUE(index.ok()) << index.status();
  const auto blob = (*index)->Serialize();
  ASSERT_TRUE(blob.ok()) << blob.status();
  auto loaded = LoadKeyIndex(spec, *blob, data.rows, data.dim);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ((*loaded)->rows(), data.rows);
  EXPECT_EQ((*loaded)->dim(), data.dim);
  EXPECT_EQ((*loaded)->exact(), (*index)->exact());
  EXPECT_EQ((*loaded)->MemoryBytes(), (*index)->MemoryBytes());
  EXPECT_EQ(SearchAll(**loaded, data, 40), SearchAll(**index, data, 40));
  const auto again = (*loaded)->Serialize();
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(*again, *blob);
}

TEST_P(KeyIndexKindTest, BuildingTwiceGivesTheSameBlob) {
  const Attention& data = Small();
  auto first = BuildKeyIndex(Spec(GetParam()), data.keys.data(), data.rows, data.dim);
  auto second = BuildKeyIndex(Spec(GetParam()), data.keys.data(), data.rows, data.dim);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(*(*first)->Serialize(), *(*second)->Serialize());
}

TEST_P(KeyIndexKindTest, FetchBeyondTheRowsIsPadded) {
  const Attention& data = Small();
  auto index = BuildKeyIndex(Spec(GetParam()), data.keys.data(), data.rows, data.dim);
  ASSERT_TRUE(index.ok()) << index.status();
  const int64_t fetch = data.rows + 11;
  std::vector<int64_t> found(static_cast<size_t>(fetch), -7);
  ASSERT_TRUE((*index)->Search(data.values.data(), 1, fetch, found.data()).ok());
  std::vector<bool> seen(static_cast<size_t>(data.rows));
  for (int64_t i = 0; i < fetch; ++i) {
    const int64_t row = found[static_cast<size_t>(i)];
    ASSERT_TRUE(row >= -1 && row < data.rows);
    if (i >= data.rows) {
      EXPECT_EQ(row, -1);
    }
    if (row >= 0) {
      EXPECT_FALSE(seen[static_cast<size_t>(row)]) << "twice: " << row;
      seen[static_cast<size_t>(row)] = true;
    }
  }
  EXPECT_TRUE((*index)->Search(data.values.data(), 0, 5, nullptr).ok());
  EXPECT_TRUE((*index)->Search(data.values.data(), 1, 0, nullptr).ok());
  EXPECT_EQ((*index)->Search(data.values.data(), 1, -1, nullptr).code(), absl::StatusCode::kInvalidArgument);
  std::vector<float> bad(static_cast<size_t>(data.dim), std::nanf(""));
  EXPECT_EQ((*index)->Search(bad.data(), 1, 5, found.data()).code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(KeyIndexKindTest, DamagedBlobIsDataLoss) {
  const Attention& data = Small();
  const IndexSpec spec = Spec(GetParam());
  auto index = BuildKeyIndex(spec, data.keys.data(), data.rows, data.dim);
  ASSERT_TRUE(index.ok()) << index.status();
  const std::string blob = *(*index)->Serialize();
  constexpr uint32_t kSeed = 99;
  std::mt19937 random(kSeed);
  // All of the header, and places everywhere else.
  std::vector<size_t> places;
  for (size_t i = 0; i < std::min<size_t>(blob.size(), 160); ++i) places.push_back(i);
  for (int i = 0; i < 300; ++i) places.push_back(random() % blob.size());
  for (const size_t place : places) {
    std::string damaged = blob;
    damaged[place] = static_cast<char>(damaged[place] ^ (1 << random() % 8));
    const auto loaded = LoadKeyIndex(spec, damaged, data.rows, data.dim);
    ASSERT_EQ(loaded.status().code(), absl::StatusCode::kDataLoss) << "byte " << place << ": " << loaded.status();
    EXPECT_NE(loaded.status().message().find("damaged"), absl::string_view::npos) << loaded.status();
  }
  for (size_t length = 0; length < blob.size(); length += 1 + length / 4) {
    const auto loaded = LoadKeyIndex(spec, blob.substr(0, length), data.rows, data.dim);
    ASSERT_EQ(loaded.status().code(), absl::StatusCode::kDataLoss) << "length " << length;
  }
  ASSERT_EQ(LoadKeyIndex(spec, blob + "x", data.rows, data.dim).status().code(), absl::StatusCode::kDataLoss);
}

TEST_P(KeyIndexKindTest, OpenMpSettingIsLeftAlone) {
  const Attention& data = Small();
  const int before = omp_get_max_threads();
  omp_set_num_threads(3);
  const IndexSpec spec = Spec(GetParam());
  auto index = BuildKeyIndex(spec, data.keys.data(), data.rows, data.dim);
  ASSERT_TRUE(index.ok());
  EXPECT_EQ(omp_get_max_threads(), 3);
  const std::string blob = *(*index)->Serialize();
  EXPECT_EQ(omp_get_max_threads(), 3);
  ASSERT_TRUE(LoadKeyIndex(spec, blob, data.rows, data.dim).ok());
  EXPECT_EQ(omp_get_max_threads(), 3);
  SearchAll(**index, data, 10);
  EXPECT_EQ(omp_get_max_threads(), 3);
  omp_set_num_threads(before);
}

TEST_P(KeyIndexKindTest, ConcurrentSearchesAgree) {
  const Attention& data = Small();
  auto index = BuildKeyIndex(Spec(GetParam()), data.keys.data(), data.rows, data.dim);
  ASSERT_TRUE(index.ok());
  const std::vector<int64_t> expected = SearchAll(**index, data, 32);
  std::atomic<int> bad{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int round = 0; round < 5; ++round) {
        std::vector<int64_t> found(expected.size());
        bad += !(*index)->Search(data.values.data(), data.queries, 32, found.data()).ok() || found != expected;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(bad, 0);
}

TEST(KeyIndexTest, BlobOfAnotherKindIsRefused) {
  const Attention& data = Small();
  const auto build = [&](const char* spec) {
    return *(*BuildKeyIndex(Spec(spec), data.keys.data(), data.rows, data.dim))->Serialize();
  };
  const auto code = [](const auto& loaded) { return loaded.status().code(); };
  constexpr auto kOther = absl::StatusCode::kFailedPrecondition;
  const std::string flat = build("flat"), ivf = build("ivf,lists=10");
  EXPECT_EQ(code(LoadKeyIndex(Spec("hnsw"), flat, data.rows, data.dim)), kOther);
  EXPECT_EQ(code(LoadKeyIndex(Spec("flat"), flat, data.rows + 1, data.dim)), kOther);
  EXPECT_EQ(code(LoadKeyIndex(Spec("flat"), flat, data.rows, data.dim + 1)), kOther);
  EXPECT_EQ(code(LoadKeyIndex(Spec("ivf,lists=11"), ivf, data.rows, data.dim)), kOther);
  // What only a search uses may differ.
  auto loaded = LoadKeyIndex(Spec("ivf,lists=10,probes=10"), ivf, data.rows, data.dim);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(Recall(**loaded, data, 10, 10), 1.0);
}

// A blob whose checksum is right but whose payload FAISS cannot read, or reads as something else.
TEST(KeyIndexTest, SoundBlobOfWrongContentIsAnError) {
  const Attention& data = Small();
  const auto with_checksum = [](std::string blob) {
    const uint32_t sum = Checksum32(blob.data() + 16, blob.size() - 16, Checksum32(blob.data(), 12));
    std::memcpy(blob.data() + 12, &sum, sizeof(sum));
    return blob;
  };
  const std::string flat = *(*BuildKeyIndex(Spec("flat"), data.keys.data(), data.rows, data.dim))->Serialize();
  EXPECT_EQ(with_checksum(flat), flat);
  std::string garbage = flat;
  const size_t payload = 48 + std::strlen("Flat") + static_cast<size_t>(data.dim) * sizeof(float);
  std::memcpy(garbage.data() + payload, "what", 4);  // no type that FAISS knows
  EXPECT_FALSE(LoadKeyIndex(Spec("flat"), with_checksum(garbage), data.rows, data.dim).ok());
  std::string version = flat;
  version[8] = 9;
  EXPECT_EQ(LoadKeyIndex(Spec("flat"), with_checksum(version), data.rows, data.dim).status().code(),
            absl::StatusCode::kFailedPrecondition);
  std::string length = flat;
  length[40] = static_cast<char>(length[40] ^ 1);
  EXPECT_EQ(LoadKeyIndex(Spec("flat"), with_checksum(length), data.rows, data.dim).status().code(),
            absl::StatusCode::kDataLoss);
  // FAISS's bytes of another row count under this header.
  const int64_t fewer = data.rows - 1;
  const std::string other = *(*BuildKeyIndex(Spec("flat"), data.keys.data(), fewer, data.dim))->Serialize();
  std::string mixed = other;
  std::memcpy(mixed.data() + 16, &data.rows, sizeof(data.rows));
  EXPECT_EQ(LoadKeyIndex(Spec("flat"), with_checksum(mixed), data.rows, data.dim).status().code(),
            absl::StatusCode::kDataLoss);
}

TEST(KeyIndexTest, FewAndEqualRows) {
  const Attention data = MakeAttention(5, 3, 8, 1);
  for (const char* spec : {"flat", "ivf", "hnsw"}) {
    auto index = BuildKeyIndex(Spec(spec), data.keys.data(), data.rows, data.dim);
    ASSERT_TRUE(index.ok()) << spec << index.status();
    EXPECT_EQ(Recall(**index, data, 5, 5), 1.0) << spec;
  }
  EXPECT_EQ(BuildKeyIndex(Spec("ivfpq"), data.keys.data(), data.rows, data.dim).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(BuildKeyIndex(Spec("ivf,lists=6"), data.keys.data(), data.rows, data.dim).status().code(),
            absl::StatusCode::kInvalidArgument);
  Attention same{600, 1, 8, std::vector<float>(600 * 8, 2.0f), std::vector<float>(8, 1.0f)};
  Attention zero{600, 1, 8, std::vector<float>(600 * 8, 0.0f), std::vector<float>(8, 0.0f)};
  for (const char* spec : {"flat", "ivf", "ivfpq", "hnsw"}) {
    for (const Attention* rows : {&same, &zero}) {
      auto index = BuildKeyIndex(Spec(spec), rows->keys.data(), rows->rows, rows->dim);
      ASSERT_TRUE(index.ok()) << spec << index.status();
      EXPECT_GE(SearchAll(**index, *rows, 3)[0], 0) << spec;
    }
  }
}

TEST(KeyIndexTest, RefusesWhatItCannotBuild) {
  const std::vector<float> keys(64, 1.0f);
  const auto code = [&](const char* spec, int64_t rows, int64_t dim) {
    return BuildKeyIndex(Spec(spec), keys.data(), rows, dim).status().code();
  };
  EXPECT_EQ(code("scan", 8, 8), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code("auto", 8, 8), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code("flat", 0, 8), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code("flat", 8, 0), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code("faiss:IVF2,PQ3", 8, 8), absl::StatusCode::kInvalidArgument);
  std::vector<float> bad = keys;
  bad[17] = std::nanf("");
  EXPECT_EQ(BuildKeyIndex(Spec("flat"), bad.data(), 8, 8).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(IndexSpecTest, RoundTrips) {
  for (const char* text :
       {"auto", "scan", "flat", "ivf", "ivfpq", "hnsw", "ivf,lists=256,probes=32", "ivfpq,lists=64,pq_bytes=8",
        "hnsw,degree=32,ef_construction=200,ef_search=128", "faiss:Flat", "faiss:IVF64,PQ16", "faiss:HNSW32",
        "faiss:HNSW16,SQ8", "faiss:IVF64,Flat,probes=9", "faiss:SQfp16"}) {
    EXPECT_EQ(FormatIndexSpec(Spec(text)), text);
  }
  const IndexSpec spec = Spec("ivf,probes=32,lists=256");
  EXPECT_EQ(spec.kind, IndexKind::kIvf);
  EXPECT_EQ(spec.lists, 256);
  EXPECT_EQ(spec.probes, 32);
}

TEST(IndexSpecTest, SaysWhatWasExpected) {
  const auto expect_error = [](absl::string_view text, absl::string_view part) {
    const absl::Status status = ParseIndexSpec(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_NE(status.message().find(part), absl::string_view::npos) << text << ": " << status.message();
  };
  expect_error("", "expected auto");
  expect_error("tree", "not \"tree\"");
  expect_error("IVF", "expected auto");
  expect_error("ivf,", "is not an option");
  expect_error("ivf,lists", "expected lists=N, probes=N");
  expect_error("ivf,lists=0", "must be a number");
  expect_error("ivf,lists=-4", "must be a number");
  expect_error("ivf,lists=12x", "must be a number");
  expect_error("ivf,lists=99999999999", "must be a number");
  expect_error("ivf,lists=2,lists=3", "given twice");
  expect_error("ivf,degree=3", "is not an option");
  expect_error("flat,lists=3", "it has none");
  expect_error("faiss:", "not allowed");
  for (const char* factory :
       {"LSH", "OPQ16,IVF64,PQ16", "IVF64", "IVF,Flat", "IVF64,LSQ4", "IVF64(HNSW32),Flat", "IDMap,Flat", "PQ16",
        "HNSW32,PQ8", "HNSW1", "IVF64,PQ16x4fs", "Flat,Flat", "NSG32,Flat", "PCA8,Flat", "IVF0,Flat", "flat"}) {
    expect_error(std::string("faiss:") + factory, "not allowed");
  }
}

TEST(FaissVersionTest, HasThreeNumbers) {
  const absl::string_view version = FaissVersion();
  EXPECT_EQ(std::count(version.begin(), version.end(), '.'), 2) << version;
}

}  // namespace
}  // namespace mneme
