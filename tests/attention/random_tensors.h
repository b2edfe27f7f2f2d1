// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_ATTENTION_RANDOM_TENSORS_H_
#define MNEME_TESTS_ATTENTION_RANDOM_TENSORS_H_

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/cpu.h"
#include "base/dtype.h"
#include "base/tensor.h"
#include "gtest/gtest.h"

namespace mneme {

// A generator whose seed is MNEME_TEST_SEED or `fallback`; the trace names it where a test fails.
class TestRandom {
 public:
  explicit TestRandom(uint32_t fallback) : seed_(Seed(fallback)), engine_(seed_) {}

  uint32_t seed() const { return seed_; }
  std::mt19937& engine() { return engine_; }
  // A number of [low, high].
  int64_t Between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine_); }
  float Normal(float deviation = 1.0f) { return std::normal_distribution<float>(0.0f, deviation)(engine_); }
  bool Chance(double p) { return std::bernoulli_distribution(p)(engine_); }
  template <typename T>
  T OneOf(const std::vector<T>& choices) {
    return choices[static_cast<size_t>(Between(0, static_cast<int64_t>(choices.size()) - 1))];
  }

 private:
  static uint32_t Seed(uint32_t fallback) {
    const char* wish = std::getenv("MNEME_TEST_SEED");
    return wish == nullptr ? fallback : static_cast<uint32_t>(std::strtoul(wish, nullptr, 10));
  }

  uint32_t seed_;
  std::mt19937 engine_;
};

// A tensor in memory of exactly its own extent, so that a sanitizer sees a read beyond it.
class OwnedTensor {
 public:
  // `element` makes the values, which are rounded to `dtype`. Strides are drawn: rows or heads outermost, gaps,
  // either direction.
  OwnedTensor(TestRandom& random, DType dtype, int64_t rows, int64_t heads, int64_t dim,
              const std::function<float()>& element) {
    view_.dtype = dtype;
    view_.rows = rows;
    view_.heads = heads;
    view_.dim = dim;
    const int64_t gap = random.Chance(0.5) ? 0 : random.Between(1, 9);
    const int64_t outer_gap = random.Chance(0.5) ? 0 : random.Between(1, 9);
    if (random.Chance(0.5)) {
      view_.head_stride = dim + gap;
      view_.row_stride = heads * view_.head_stride + outer_gap;
    } else {
      view_.row_stride = dim + gap;
      view_.head_stride = rows * view_.row_stride + outer_gap;
    }
    int64_t first = 0;
    if (rows == 0) return;
    const int64_t extent = (rows - 1) * view_.row_stride + (heads - 1) * view_.head_stride + dim;
    if (random.Chance(0.3)) {
      first += (rows - 1) * view_.row_stride;
      view_.row_stride = -view_.row_stride;
    }
    if (random.Chance(0.3)) {
      first += (heads - 1) * view_.head_stride;
      view_.head_stride = -view_.head_stride;
    }
    bytes_.resize(static_cast<size_t>(extent) * DTypeSize(dtype));
    view_.data = bytes_.data() + static_cast<size_t>(first) * DTypeSize(dtype);
    std::vector<float> row(static_cast<size_t>(dim));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t h = 0; h < heads; ++h) {
        std::generate(row.begin(), row.end(), element);
        SetRow(r, h, row);
      }
    }
  }

  OwnedTensor(const OwnedTensor&) = delete;
  OwnedTensor& operator=(const OwnedTensor&) = delete;

  const RowTensor& view() const { return view_; }

  void SetRow(int64_t row, int64_t head, const std::vector<float>& values) {
    ConvertFromF32(values.data(), view_.dtype, const_cast<void*>(view_.Row(row, head)), values.size());
  }

  // The row as it is after rounding.
  std::vector<double> Row(int64_t row, int64_t head) const {
    std::vector<float> values(static_cast<size_t>(view_.dim));
    ConvertToF32(view_.dtype, view_.Row(row, head), values.data(), values.size());
    return {values.begin(), values.end()};
  }

 private:
  RowTensor view_;
  std::vector<char> bytes_;
};

// A test that runs on every target; those that the processor lacks are reported as skipped.
class EachTarget : public ::testing::TestWithParam<CpuTarget> {
 protected:
  void SetUp() override {
    if (!CpuHas(GetParam())) GTEST_SKIP() << "this processor has no " << std::string(CpuTargetName(GetParam()));
  }
};

#define MNEME_INSTANTIATE_TARGETS(suite)                                                                               \
  INSTANTIATE_TEST_SUITE_P(Targets, suite, ::testing::Values(CpuTarget::kPlain, CpuTarget::kAvx2, CpuTarget::kAvx512), \
                           [](const auto& info) { return std::string(CpuTargetName(info.param)); })

// The greatest error by name, printed at the end of a test: docs/design/attention.md quotes it.
class ErrorTable {
 public:
  explicit ErrorTable(std::string title) : title_(std::move(title)) {}
  ~ErrorTable() {
    for (const auto& [name, error] : greatest_) {
      std::printf("[ GREATEST ] %s %s: %.2e\n", title_.c_str(), name.c_str(), error);
    }
  }
  ErrorTable(const ErrorTable&) = delete;
  ErrorTable& operator=(const ErrorTable&) = delete;

  void Add(const std::string& name, double error) {
    double& greatest = greatest_[name];
    if (!(error <= greatest)) greatest = error;
  }

 private:
  std::string title_;
  std::map<std::string, double> greatest_;
};

}  // namespace mneme

#endif  // MNEME_TESTS_ATTENTION_RANDOM_TENSORS_H_
