// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/src/local_window.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace mneme::llama {
namespace {

// Rows of '1' (seen) and '0' (masked), one a query.
class Mask {
 public:
  explicit Mask(const std::vector<std::string>& rows) {
    tensor_.type = GGML_TYPE_F16;
    tensor_.ne[0] = static_cast<int64_t>(rows[0].size());
    tensor_.ne[1] = static_cast<int64_t>(rows.size());
    tensor_.nb[0] = 2;
    tensor_.nb[1] = 2 * rows[0].size();
    for (const std::string& row : rows) {
      for (const char cell : row) data_.push_back(cell == '1' ? 0x0000 : 0xfc00);
    }
    tensor_.data = data_.data();
  }
  const ggml_tensor& tensor() const { return tensor_; }

 private:
  std::vector<uint16_t> data_;
  ggml_tensor tensor_ = {};
};

TEST(LocalWindowTest, CellsInOrderAreCausal) {
  const Mask mask({"01110000", "01111000", "01111100"});
  const LocalWindow window = ReadLocalWindow(mask.tensor(), 0, 3);
  EXPECT_EQ(window.first_cell, 1);
  EXPECT_EQ(window.cells, 5);
  EXPECT_EQ(window.first_visible, 3);
  EXPECT_TRUE(window.causal);
  EXPECT_TRUE(window.bits.empty());
}

TEST(LocalWindowTest, CellsInAnyOrderAreBits) {
  const Mask mask({"0001000111", "1001000111", "1101000111"});
  const LocalWindow window = ReadLocalWindow(mask.tensor(), 0, 3);
  EXPECT_EQ(window.first_cell, 0);
  EXPECT_EQ(window.cells, 10);
  EXPECT_EQ(window.first_visible, 4);
  EXPECT_FALSE(window.causal);
  ASSERT_EQ(window.stride, 2);
  EXPECT_EQ(window.bits, (std::vector<uint8_t>{0x88, 0x03, 0x89, 0x03, 0x8b, 0x03}));
}

TEST(LocalWindowTest, ReadsOnlyTheGivenQueries) {
  const Mask mask({"11111111", "00110000", "00111000"});
  const LocalWindow window = ReadLocalWindow(mask.tensor(), 1, 3);
  EXPECT_EQ(window.first_cell, 2);
  EXPECT_EQ(window.cells, 3);
  EXPECT_TRUE(window.causal);
}

TEST(LocalWindowTest, ALateQueryThatSeesNoMoreIsNotCausal) {
  const Mask mask({"11100000", "11100000"});
  const LocalWindow window = ReadLocalWindow(mask.tensor(), 0, 2);
  EXPECT_FALSE(window.causal);
  EXPECT_EQ(window.bits, (std::vector<uint8_t>{0x07, 0x07}));
}

TEST(LocalWindowTest, NothingSeenIsEmpty) {
  const Mask mask({"0000"});
  EXPECT_EQ(ReadLocalWindow(mask.tensor(), 0, 1).cells, 0);
}

}  // namespace
}  // namespace mneme::llama
