// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/argument_error.h"

#include <limits>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace mneme {
namespace {

TEST(ArgumentErrorTest, NamesTheArgumentAndSaysWhatWasExpected) {
  const absl::Status status = ArgumentError({.argument = Argument::kQueryOffsets,
                                             .expected = "4",
                                             .got = "5",
                                             .element = 2,
                                             .code = absl::StatusCode::kInvalidArgument});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "query_offsets[2]: expected 4, got 5");
  EXPECT_EQ(ArgumentOf(status), Argument::kQueryOffsets);
}

TEST(ArgumentErrorTest, AReasonIsUnimplementedUnlessItSaysOtherwise) {
  const absl::Status status = ArgumentError({Argument::kLocalKeys, "f16", "f32", "dtype"});
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(status.message(), "local_keys.dtype: expected f16, got f32");
}

TEST(ArgumentErrorTest, NoReasonIsNoError) {
  EXPECT_TRUE(UnsupportedReason().supported());
  EXPECT_TRUE(ArgumentError(UnsupportedReason()).ok());
}

TEST(ArgumentErrorTest, OtherErrorsHaveNoArgument) {
  EXPECT_EQ(ArgumentOf(absl::OkStatus()), std::nullopt);
  EXPECT_EQ(ArgumentOf(absl::DataLossError("query: damaged")), std::nullopt);
}

TEST(ArgumentErrorTest, EachArgumentHasAName) {
  for (int i = static_cast<int>(Argument::kNone) + 1; i <= static_cast<int>(Argument::kNormaliseQuery); ++i) {
    EXPECT_FALSE(ArgumentName(static_cast<Argument>(i)).empty()) << i;
  }
}

TEST(ArgumentErrorTest, CheckFiniteNamesTheRow) {
  std::vector<float> numbers(2 * 3 * 4, 1.0f);
  const RowTensor tensor = {.data = numbers.data(),
                            .dtype = DType::kF32,
                            .rows = 2,
                            .heads = 3,
                            .dim = 4,
                            .row_stride = 12,
                            .head_stride = 4};
  EXPECT_TRUE(CheckFinite(Argument::kQuery, tensor).ok());
  numbers[12 + 2 * 4 + 1] = std::numeric_limits<float>::infinity();
  const absl::Status status = CheckFinite(Argument::kQuery, tensor);
  EXPECT_EQ(ArgumentOf(status), Argument::kQuery);
  EXPECT_TRUE(absl::StrContains(status.message(), "in row 1 of head 2")) << status;
}

}  // namespace
}  // namespace mneme
