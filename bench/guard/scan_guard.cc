// SPDX-License-Identifier: Apache-2.0
// That exact search has not become slow: ratios of one process, with bounds far from what is usual
// (docs/performance.md), near enough that the loss of a vector kernel is noticed.

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "base/cpu.h"
#include "base/dtype.h"
#include "bench/guard/rounds.h"
#include "bench/micro/read_bandwidth.h"
#include "bench/random_floats.h"
#include "index/key_rows.h"
#include "index/scan/code_scan.h"
#include "index/scan/key_codes.h"
#include "index/scan/key_scan.h"
#include "index/top_k.h"

namespace mneme {
namespace {

constexpr int64_t kRows = 65536, kDim = 128, kGroup = 4, kTop = 32;

// Least ratios.
constexpr double kOfReading = 0.15;
constexpr double kCodesBeforeKeys = 1.5;
constexpr double kKeysBeforeLoop = 3;

// Whatever MNEME_KERNELS says.
CpuTarget BestOfProcessor() {
  CpuTarget best = CpuTarget::kPlain;
  for (const CpuTarget target : {CpuTarget::kAvx2, CpuTarget::kAvx512}) {
    if (CpuHas(target)) best = target;
  }
  return best;
}

// One head's keys in f16, and a group of queries.
class ScanGuard : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    const std::vector<float> values = RandomFloats(static_cast<size_t>(kRows * kDim), 1);
    std::vector<char> encoded(static_cast<size_t>(kRows) * RowBytes(DType::kF16, kDim));
    for (int64_t row = 0; row < kRows; ++row) {
      EncodeRow(values.data() + row * kDim, DType::kF16,
                encoded.data() + static_cast<size_t>(row) * RowBytes(DType::kF16, kDim), kDim);
    }
    keys_ = new KeyRows(DType::kF16, kDim);
    keys_->Append(encoded.data(), kRows);
    codes_ = new KeyCodes(kDim);
    codes_->Extend(*keys_);
  }
  static void TearDownTestSuite() {
    delete codes_;
    delete keys_;
  }

  void SetUp() override {
    if (BestOfProcessor() == CpuTarget::kPlain) GTEST_SKIP() << "this processor has nothing beyond plain kernels";
  }

  void Scan() {
    for (TopK& top : top_) top.Reset(kTop);
    ScanTopK(*keys_, 0, kRows, 0, queries_.data(), kGroup, rankings_.data(), top_.data());
  }
  void ScanByCode() {
    for (TopK& top : top_) top.Reset(kTop);
    ScanCounts counts;
    ScanCodesTopK(*keys_, *codes_, 0, kRows, 0, queries_.data(), kGroup, rankings_.data(), nullptr, top_.data(),
                  &counts);
    ASSERT_GT(counts.by_code, 0);
  }
  // Seconds that reading the codes takes.
  static double ReadCodes() {
    std::vector<Piece> pieces;
    for (int64_t row = 0, contiguous = 0; row < codes_->rows(); row += contiguous * KeyCodes::kBlockRows) {
      const char* blocks = codes_->Blocks(row, &contiguous);
      contiguous = std::min(contiguous, codes_->rows() / KeyCodes::kBlockRows - row / KeyCodes::kBlockRows);
      pieces.push_back({blocks, static_cast<size_t>(contiguous * codes::BlockBytes(kDim))});
    }
    size_t bytes = 0;
    for (const Piece& piece : pieces) bytes += piece.bytes;
    return static_cast<double>(bytes) / ReadBandwidth(pieces, 1, 3);
  }

  static KeyRows* keys_;
  static KeyCodes* codes_;
  const std::vector<float> queries_ = RandomFloats(static_cast<size_t>(kGroup * kDim), 2);
  const std::vector<Ranking> rankings_ = std::vector<Ranking>(kGroup);
  std::vector<TopK> top_ = std::vector<TopK>(kGroup, TopK(kTop));
};

KeyRows* ScanGuard::keys_ = nullptr;
KeyCodes* ScanGuard::codes_ = nullptr;

TEST_F(ScanGuard, TheProcessorsBestKernelsAreChosen) {
  const std::string best(CpuTargetName(BestOfProcessor()));
  EXPECT_EQ(std::string(CpuTargetName(BestCpuTarget())), best) << "is MNEME_KERNELS set?";
  EXPECT_EQ(std::string(KeyScanKernelName()), best);
  EXPECT_NE(std::string(CodeScanKernelName()), "plain");
}

// Of the speed of reading the codes, on one thread.
TEST_F(ScanGuard, CodesAtTheSpeedOfReading) {
  ExpectFasterThan(kOfReading, &ReadCodes, [this] { ScanByCode(); });
}

TEST_F(ScanGuard, CodesBeforeKeys) {
  ExpectFasterThan(kCodesBeforeKeys, TimeOf([this] { Scan(); }), [this] { ScanByCode(); });
}

// A loop over f32, as a compiler makes it without permission to reorder sums.
TEST_F(ScanGuard, KeysBeforeAPlainLoop) {
  const std::vector<float> keys = RandomFloats(static_cast<size_t>(kRows * kDim), 1);
  std::vector<float> dots(static_cast<size_t>(kRows));
  const auto loop = [&] {
    for (int64_t i = 0; i < kGroup; ++i) {
      for (int64_t row = 0; row < kRows; ++row) {
        float dot = 0;
        for (int64_t d = 0; d < kDim; ++d)
          dot += queries_[static_cast<size_t>(i * kDim + d)] * keys[static_cast<size_t>(row * kDim + d)];
        dots[static_cast<size_t>(row)] = dot;
      }
      volatile float keep = dots[static_cast<size_t>(i)];
      (void)keep;
    }
  };
  ExpectFasterThan(kKeysBeforeLoop, TimeOf(loop), [this] { Scan(); });
}

}  // namespace
}  // namespace mneme
