// SPDX-License-Identifier: Apache-2.0
// Tests of FAISS's kinds on a GPU alone. key_index_test.cc tests what they share with the other kinds.

#include <faiss/IndexFlat.h>

#ifdef MNEME_FAISS_GPU
#include <cuda_runtime_api.h>

#include "index/faiss/faiss_gpu_resources.h"
#endif

#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "index/faiss/faiss_blob.h"
#include "index/faiss/faiss_call.h"
#include "index/faiss/faiss_index.h"
#include "index/faiss/faiss_structure.h"
#include "index/key_index.h"

namespace mneme {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

// The gpu kinds and what each is on the host.
constexpr std::pair<const char*, const char*> kKinds[] = {
    {"gpu-flat", "flat"}, {"gpu-ivf", "ivf"}, {"gpu-ivfpq", "ivfpq"}};

bool BuiltIn() {
  return absl::StrContains(FaissVersion(), " with GPU");
}
bool HasDevice() {
  return absl::EndsWith(FaissVersion(), " with GPU");
}

#define SKIP_WITHOUT_DEVICE() \
  if (!HasDevice()) GTEST_SKIP() << "no device: FAISS " << FaissVersion()

std::vector<float> RandomRows(int64_t rows, int64_t dim, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> data(static_cast<size_t>(rows * dim));
  for (float& x : data) x = normal(random);
  return data;
}

struct Rows {
  static constexpr int64_t kRows = 3000, kDim = 16, kQueries = 20;
  std::vector<float> keys = RandomRows(kRows, kDim, 1);
  std::vector<float> queries = RandomRows(kQueries, kDim, 2);

  std::unique_ptr<KeyIndex> Build(absl::string_view spec) const {
    auto index = BuildKeyIndex(*ParseIndexSpec(spec), keys.data(), kRows, kDim);
    EXPECT_TRUE(index.ok()) << spec << ": " << index.status();
    return index.ok() ? *std::move(index) : nullptr;
  }
  std::unique_ptr<KeyIndex> Load(absl::string_view spec, absl::string_view blob) const {
    auto index = LoadKeyIndex(*ParseIndexSpec(spec), blob, kRows, kDim);
    EXPECT_TRUE(index.ok()) << spec << ": " << index.status();
    return index.ok() ? *std::move(index) : nullptr;
  }
  std::vector<int64_t> Search(const KeyIndex& index, int64_t fetch) const {
    std::vector<int64_t> found(static_cast<size_t>(kQueries * fetch), -7);
    const absl::Status status = index.Search(queries.data(), kQueries, fetch, found.data());
    EXPECT_TRUE(status.ok()) << status;
    return found;
  }
};

// The part of `expected` that is in `found`, query by query.
double Overlap(const std::vector<int64_t>& found, const std::vector<int64_t>& expected, int64_t fetch) {
  int64_t hits = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const auto begin = found.begin() + static_cast<int64_t>(i) / fetch * fetch;
    hits += std::count(begin, begin + fetch, expected[i]);
  }
  return static_cast<double>(hits) / static_cast<double>(expected.size());
}

TEST(GpuSpecTest, RoundTripsOrSaysWhatIsMissing) {
  const std::pair<const char*, const char*> specs[] = {
      {"gpu-flat", "flat"},
      {"gpu-flat,scratch_mib=256", "flat"},
      {"gpu-ivf,lists=256,probes=32,scratch_mib=16", "ivf"},
      {"gpu-ivfpq,lists=64,pq_bytes=8", "ivfpq"},
  };
  for (const auto& [text, on_host] : specs) {
    const auto spec = ParseIndexSpec(text);
    if (BuiltIn()) {
      ASSERT_TRUE(spec.ok()) << spec.status();
      EXPECT_EQ(FormatIndexSpec(*spec), text);
      continue;
    }
    EXPECT_TRUE(absl::IsUnimplemented(spec.status())) << spec.status();
    const std::string kind = std::string(text).substr(0, std::string(text).find(','));
    EXPECT_EQ(spec.status().message(),
              absl::StrCat(kind, ": not built in, it takes a FAISS with GPU support, this build's FAISS ",
                           FaissVersion(), " has none; ", on_host, " is its like on the CPU"));
  }
}

TEST(GpuSpecTest, MistakesAreFoundInAnyBuild) {
  const auto expect_error = [](absl::string_view text, absl::string_view part) {
    const absl::Status status = ParseIndexSpec(text).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << text << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::string(part))) << text;
  };
  expect_error("gpu-flat,lists=3", "expected scratch_mib=N");
  expect_error("gpu-ivf,pq_bytes=3", "expected lists=N, probes=N, scratch_mib=N");
  expect_error("gpu-ivfpq,degree=3", "expected lists=N, probes=N, pq_bytes=N, scratch_mib=N");
  expect_error("gpu-ivf,scratch_mib=0", "must be a number");
  expect_error("ivf,scratch_mib=3", "is not an option");
  expect_error("gpu-hnsw", "not \"gpu-hnsw\"");
}

TEST(GpuSpecTest, CagraNamesWhatItTakes) {
  const absl::Status status = ParseIndexSpec("gpu-cagra").status();
  EXPECT_TRUE(absl::IsUnimplemented(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("cuVS"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("hnsw is its like on the CPU"));
}

TEST(GpuSpecTest, KindsThatAreNotBuiltInAreNotBuilt) {
  if (BuiltIn()) GTEST_SKIP() << "they are built in";
  const std::vector<float> keys(64, 1.0f);
  IndexSpec spec;
  for (const IndexKind kind : {IndexKind::kGpuFlat, IndexKind::kGpuIvf, IndexKind::kGpuIvfPq, IndexKind::kGpuCagra}) {
    spec.kind = kind;
    EXPECT_TRUE(absl::IsUnimplemented(BuildKeyIndex(spec, keys.data(), 8, 8).status()));
    EXPECT_TRUE(absl::IsUnimplemented(LoadKeyIndex(spec, "", 8, 8).status()));
  }
}

// Blobs pass from one to the other by this.
TEST(GpuShapeTest, IsThatOfTheKindOnTheHost) {
  const auto shape = [](IndexKind kind, int64_t dim) {
    IndexSpec spec;
    spec.kind = kind;
    const auto resolved = ResolveShape(spec, 5000, dim);
    EXPECT_TRUE(resolved.ok()) << resolved.status();
    return resolved.ok() ? resolved->Text() : "";
  };
  EXPECT_EQ(shape(IndexKind::kGpuFlat, 64), shape(IndexKind::kFlat, 64));
  EXPECT_EQ(shape(IndexKind::kGpuIvf, 64), shape(IndexKind::kIvf, 64));
  for (const int64_t dim : {16, 64, 128}) EXPECT_EQ(shape(IndexKind::kGpuIvfPq, dim), shape(IndexKind::kIvfPq, dim));
  // A GPU takes fewer code lengths.
  EXPECT_EQ(shape(IndexKind::kIvfPq, 256), "IVF141,PQ128");
  EXPECT_EQ(shape(IndexKind::kGpuIvfPq, 256), "IVF141,PQ64");
  EXPECT_EQ(shape(IndexKind::kGpuIvfPq, 10), "IVF141,PQ2");
  IndexSpec spec;
  spec.kind = IndexKind::kGpuIvfPq;
  spec.pq_bytes = 5;
  const absl::Status status = ResolveShape(spec, 5000, 10).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("a GPU takes 1, 2, 3, 4, 8, 12"));
}

// A build with an assigner on the host must give the same index as a build without an assigner.
TEST(GpuBuildTest, ListsAreTrainedAndFilledByTheAssigner) {
  const Rows data;
  const OneOpenMpThread one;
  for (const char* factory : {"IVF40,Flat", "IVF40,PQ4", "IVF40,SQ8", "IVF3000,Flat"}) {
    const FaissShape shape = *ParseFactory(factory);
    const KeyCenter center = ComputeKeyCenter(shape, data.keys.data(), Rows::kRows, Rows::kDim);
    const std::vector<float> keys = center.Center(data.keys.data(), Rows::kRows);
    const auto blob = [&](faiss::Index* assigner) {
      return *WriteFaissBlob(shape, center, *BuildStructure(shape, keys, Rows::kRows, Rows::kDim, assigner));
    };
    faiss::IndexFlatL2 assigner(Rows::kDim);
    EXPECT_EQ(blob(&assigner), blob(nullptr)) << factory;
    EXPECT_EQ(assigner.ntotal, shape.lists) << factory;  // it was used
  }
}

#ifdef MNEME_FAISS_GPU
TEST(FaissGpuResourcesTest, AFewAreSharedEvenlyAndFreedWithTheLast) {
  std::vector<std::shared_ptr<FaissGpuResources>> shared;
  for (int i = 0; i < 12; ++i) shared.push_back(ShareFaissGpuResources(0, 3 << 20));
  std::map<const FaissGpuResources*, int> users;
  for (const auto& resources : shared) ++users[resources.get()];
  EXPECT_EQ(users.size(), 4u);
  for (const auto& [resources, count] : users) EXPECT_EQ(count, 3);
  EXPECT_EQ(users.count(ShareFaissGpuResources(1, 3 << 20).get()), 0u);
  EXPECT_EQ(users.count(ShareFaissGpuResources(0, 4 << 20).get()), 0u);
  const std::weak_ptr<FaissGpuResources> first = shared[0];
  shared.clear();
  EXPECT_TRUE(first.expired());
  EXPECT_EQ(ShareFaissGpuResources(0, 3 << 20).use_count(), 1);
}
#endif

TEST(GpuIndexTest, WithoutADeviceTheHostServesAndSaysSo) {
  if (!BuiltIn() || HasDevice()) GTEST_SKIP() << "FAISS " << FaissVersion();
  EXPECT_THAT(std::string(FaissVersion()), HasSubstr(" with GPU, no device"));
  const Rows data;
  for (const auto& [kind, on_host] : kKinds) {
    const auto index = data.Build(kind), host = data.Build(on_host);
    ASSERT_TRUE(index != nullptr && host != nullptr);
    EXPECT_THAT(index->Where(), StartsWith("host (no CUDA device: "));
    EXPECT_EQ(host->Where(), "host");
    const std::string blob = *index->Serialize();
    EXPECT_EQ(blob, *host->Serialize()) << kind;
    EXPECT_EQ(data.Search(*index, 40), data.Search(*host, 40)) << kind;
    const auto loaded = data.Load(kind, blob);
    ASSERT_NE(loaded, nullptr);
    EXPECT_THAT(loaded->Where(), StartsWith("host (no CUDA device: "));
    EXPECT_EQ(data.Search(*loaded, 40), data.Search(*host, 40)) << kind;
  }
}

TEST(GpuIndexTest, IsOnTheDeviceAndAgreesWithTheHost) {
  SKIP_WITHOUT_DEVICE();
  const Rows data;
  for (const auto& [kind, on_host] : kKinds) {
    const auto index = data.Build(kind);
    ASSERT_NE(index, nullptr);
    EXPECT_THAT(index->Where(), StartsWith("cuda:")) << kind;
    // Written on the device, read on the host, and back.
    const auto host = data.Load(on_host, *index->Serialize());
    ASSERT_NE(host, nullptr);
    EXPECT_EQ(host->Where(), "host");
    EXPECT_GE(Overlap(data.Search(*index, 40), data.Search(*host, 40), 40), 0.98) << kind;
    const auto back = data.Load(kind, *host->Serialize());
    ASSERT_NE(back, nullptr);
    EXPECT_THAT(back->Where(), StartsWith("cuda:")) << kind;
    EXPECT_EQ(data.Search(*back, 40), data.Search(*index, 40)) << kind;
  }
}

TEST(GpuIndexTest, FindsWhatADeviceSelectsAndPads) {
  SKIP_WITHOUT_DEVICE();
  const Rows data;
  const auto index = data.Build("gpu-flat");
  ASSERT_NE(index, nullptr);
  constexpr int64_t kFetch = 2500;
  const std::vector<int64_t> found = data.Search(*index, kFetch), fewer = data.Search(*index, 100);
  for (int64_t q = 0; q < Rows::kQueries; ++q) {
    const auto begin = found.begin() + q * kFetch;
    EXPECT_TRUE(std::equal(begin, begin + 100, fewer.begin() + q * 100));
    const auto end = std::find(begin, begin + kFetch, -1);
    EXPECT_EQ(end - begin, 2048);
    EXPECT_EQ(std::count(end, begin + kFetch, -1), kFetch - 2048);
  }
}

TEST(GpuIndexTest, IndicesThatShareResourcesAnswerAtOnce) {
  SKIP_WITHOUT_DEVICE();
  const Rows data;
  std::vector<std::unique_ptr<KeyIndex>> indices;
  for (int i = 0; i < 9; ++i) indices.push_back(data.Build(kKinds[i % 3].first));
  std::vector<std::vector<int64_t>> expected;
  for (const auto& index : indices) {
    ASSERT_NE(index, nullptr);
    expected.push_back(data.Search(*index, 32));
  }
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < 30; ++i) {
        const size_t which = (t + i) % indices.size();
        wrong += data.Search(*indices[which], 32) != expected[which];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

#ifdef MNEME_FAISS_GPU
// Device memory of `count` Ts.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : count_(count) {
    EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&data_), count * sizeof(T)), cudaSuccess);
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  void Set(const std::vector<T>& from) {
    EXPECT_EQ(cudaMemcpy(data_, from.data(), count_ * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
  }
  std::vector<T> Get() const {
    std::vector<T> to(count_);
    EXPECT_EQ(cudaMemcpy(to.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return to;
  }

 private:
  const size_t count_;
  T* data_ = nullptr;
};

TEST(GpuIndexTest, TakesAndFillsDeviceMemory) {
  SKIP_WITHOUT_DEVICE();
  const Rows data;
  DeviceArray<float> queries(data.queries.size());
  queries.Set(data.queries);
  for (const auto& [kind, on_host] : kKinds) {
    const auto index = data.Build(kind);
    ASSERT_NE(index, nullptr);
    for (const int64_t fetch : {int64_t{1}, int64_t{40}, Rows::kRows + 5}) {
      const std::vector<int64_t> expected = data.Search(*index, fetch);
      DeviceArray<int64_t> rows(expected.size());
      for (const float* from : {static_cast<const float*>(queries.data()), data.queries.data()}) {
        rows.Set(std::vector<int64_t>(expected.size(), -7));
        const absl::Status status = index->Search(from, Rows::kQueries, fetch, rows.data());
        ASSERT_TRUE(status.ok()) << kind << ": " << status;
        EXPECT_EQ(rows.Get(), expected) << kind << ", fetch " << fetch;
      }
      std::vector<int64_t> on_host_rows(expected.size(), -7);
      ASSERT_TRUE(index->Search(queries.data(), Rows::kQueries, fetch, on_host_rows.data()).ok());
      EXPECT_EQ(on_host_rows, expected) << kind << ", fetch " << fetch;
    }
  }
}

// FAISS would end the process on finding it.
TEST(GpuIndexTest, AnErrorLeftBehindIsReportedAndLeft) {
  SKIP_WITHOUT_DEVICE();
  const Rows data;
  const auto index = data.Build("gpu-flat");
  ASSERT_NE(index, nullptr);
  std::vector<int64_t> rows(Rows::kQueries);
  ASSERT_NE(cudaSetDevice(1 << 20), cudaSuccess);
  EXPECT_TRUE(absl::IsInternal(index->Search(data.queries.data(), Rows::kQueries, 1, rows.data())));
  EXPECT_NE(cudaGetLastError(), cudaSuccess);
  EXPECT_TRUE(index->Search(data.queries.data(), Rows::kQueries, 1, rows.data()).ok());
}

TEST(GpuIndexTest, LeavesNoErrorBehind) {
  SKIP_WITHOUT_DEVICE();
  const Rows data;
  for (const auto& [kind, on_host] : kKinds) {
    const auto index = data.Build(kind);
    ASSERT_NE(index, nullptr);
    data.Search(*index, 10);
    EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess) << kind;
  }
}
#endif  // MNEME_FAISS_GPU

}  // namespace
}  // namespace mneme
