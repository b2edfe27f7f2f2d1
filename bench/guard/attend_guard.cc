// SPDX-License-Identifier: Apache-2.0
// The same of the engine through its ABI: attention of one token, and of a block, against attention over everything as
// a plain loop computes it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "mneme.h"

#include "bench/guard/rounds.h"
#include "bench/host.h"
#include "bench/random_floats.h"

namespace mneme {
namespace {

constexpr int64_t kRows = 16384, kKvHeads = 2, kGroup = 4, kDim = 128, kHeads = kKvHeads * kGroup;
constexpr int64_t kMostQueries = 256;

// Least ratios.
constexpr double kOneToken = 15;
constexpr double kBlock = 20;

class AttendGuard : public ::testing::Test {
 protected:
  AttendGuard() {
    mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
    options.threads = 1;
    Check(mneme_store_open(folder_.path().c_str(), &options, &store_));
    memory_ = CreateMemory(store_, 1, kHeads, kKvHeads, kDim);
    const int64_t shape[] = {kRows, kKvHeads, kDim};
    const mneme_tensor keys = {keys_.data(), MNEME_DTYPE_F32, MNEME_DEVICE_CPU, 0, 3, shape, nullptr};
    const mneme_tensor values = {values_.data(), MNEME_DTYPE_F32, MNEME_DEVICE_CPU, 0, 3, shape, nullptr};
    mneme_memory_append_args args = MNEME_MEMORY_APPEND_ARGS_INIT;
    args.keys = &keys;
    args.values = &values;
    Check(mneme_memory_append(memory_, &args));
  }
  ~AttendGuard() override {
    mneme_memory_close(memory_);
    mneme_store_close(store_);
  }

  void SetUp() override {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) return;
#endif
    GTEST_SKIP() << "not measured on a processor without AVX2";
  }

  void Attend(int64_t queries) {
    const int64_t shape[] = {queries, kHeads, kDim};
    const mneme_tensor query = {queries_.data(), MNEME_DTYPE_F32, MNEME_DEVICE_CPU, 0, 3, shape, nullptr};
    const mneme_tensor output = {output_.data(), MNEME_DTYPE_F32, MNEME_DEVICE_CPU, 0, 3, shape, nullptr};
    mneme_attend_args args = MNEME_ATTEND_ARGS_INIT;
    args.query = &query;
    args.output = &output;
    args.fusion = MNEME_FUSION_MEMORY_ONLY;
    Check(mneme_attend(&memory_, 1, &args));
  }

  // softmax(q K) V of one token over all rows.
  void AttendNaively() {
    std::vector<float> weights(static_cast<size_t>(kRows));
    for (int64_t head = 0; head < kHeads; ++head) {
      const float* query = queries_.data() + head * kDim;
      const int64_t kv = head / kGroup * kDim;
      float greatest = -std::numeric_limits<float>::infinity();
      for (int64_t row = 0; row < kRows; ++row) {
        const float* key = keys_.data() + row * kKvHeads * kDim + kv;
        float dot = 0;
        for (int64_t d = 0; d < kDim; ++d) dot += query[d] * key[d];
        weights[static_cast<size_t>(row)] = kScale * dot;
        greatest = std::max(greatest, kScale * dot);
      }
      float sum = 0;
      float* output = naive_.data() + head * kDim;
      std::fill_n(output, kDim, 0.0f);
      for (int64_t row = 0; row < kRows; ++row) {
        const float weight = std::exp(weights[static_cast<size_t>(row)] - greatest);
        const float* value = values_.data() + row * kKvHeads * kDim + kv;
        sum += weight;
        for (int64_t d = 0; d < kDim; ++d) output[d] += weight * value[d];
      }
      for (int64_t d = 0; d < kDim; ++d) output[d] /= sum;
    }
  }

  static constexpr float kScale = 0.08838834764831845f;  // 1 / √128
  std::vector<float> keys_ = RandomFloats(static_cast<size_t>(kRows * kKvHeads * kDim), 1);
  std::vector<float> values_ = RandomFloats(keys_.size(), 2);
  std::vector<float> queries_ = RandomFloats(static_cast<size_t>(kMostQueries * kHeads * kDim), 3);
  std::vector<float> output_ = std::vector<float>(queries_.size());
  std::vector<float> naive_ = std::vector<float>(static_cast<size_t>(kHeads * kDim));
  const TemporaryFolder folder_;
  mneme_store* store_ = nullptr;
  mneme_memory* memory_ = nullptr;
};

TEST_F(AttendGuard, OneToken) {
  ExpectFasterThan(kOneToken, TimeOf([this] { AttendNaively(); }), [this] { Attend(1); });
}

// The loop would take as long again for each query of the block.
TEST_F(AttendGuard, Block) {
  const auto loop = TimeOf([this] { AttendNaively(); });
  ExpectFasterThan(
      kBlock, [&] { return static_cast<double>(kMostQueries) * loop(); }, [this] { Attend(kMostQueries); });
}

}  // namespace
}  // namespace mneme
