// SPDX-License-Identifier: Apache-2.0
#include "attention/cuda/device.h"

#include <memory>

#include "attention/cuda/attend.h"
#include "attention/cuda/device_rows.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::cuda {
namespace {

using ::testing::AnyOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST(CudaDeviceTest, DescribeSaysWhatIsThere) {
#if defined(MNEME_CUDA)
  EXPECT_THAT(Describe(), AnyOf(EndsWith(" without a device"), HasSubstr(" on ")));
#else
  EXPECT_EQ(Describe(), "off");
#endif
}

#if defined(MNEME_CUDA)

alignas(16) const char kSomewhere[16] = {};

AttendProblem Problem() {
  AttendProblem p;
  p.tokens = p.batch = p.q_heads = p.kv_heads = 1;
  p.key_dim = p.value_dim = 64;
  p.top_k = 8;
  p.query = kSomewhere;
  p.query_offsets = reinterpret_cast<const int64_t*>(kSomewhere);
  p.memories = reinterpret_cast<const MemoryRows* const*>(kSomewhere);
  p.output = const_cast<char*>(kSomewhere);
  return p;
}

TEST(CudaDeviceTest, WrongArgumentsAreNamedBeforeTheDeviceIsAsked) {
  AttendProblem p = Problem();
  EXPECT_THAT(Prepare(p, {}, nullptr), StartsWith("plan: "));
  p.key_dim = 63;
  AttendPlan plan;
  EXPECT_THAT(Prepare(p, {}, &plan), StartsWith("key_dim: expected 64, 128 or 256, got 63"));
  EXPECT_THAT(Attend(p, plan, nullptr, nullptr), StartsWith("key_dim: "));
  plan.workspace_bytes = 512;
  EXPECT_THAT(Attend(Problem(), plan, nullptr, nullptr), StartsWith("workspace: expected 512 bytes"));
  std::unique_ptr<DeviceRows> rows;
  DeviceBudget budget(1000);
  const RowsShape shape{1, 64, 64, DType::kF16, 100};
  EXPECT_THAT(DeviceRows::Create(shape, nullptr, &rows), StartsWith("budget: "));
  EXPECT_THAT(DeviceRows::Create(shape, &budget, nullptr), StartsWith("rows: "));
  EXPECT_THAT(DeviceRows::Create(shape, &budget, &rows), HasSubstr("bytes of room, got 1000"));
  EXPECT_EQ(budget.used(), 0);
}

TEST(CudaDeviceTest, WithoutADeviceEveryCallSaysSo) {
  if (Describe().find(" on ") != std::string::npos) GTEST_SKIP() << "there is a device";
  AttendPlan plan;
  EXPECT_THAT(Prepare(Problem(), {}, &plan), StartsWith("Prepare: "));
  plan = PlanAttend(Problem(), {}, DeviceRoom{}, 8);
  EXPECT_THAT(Attend(Problem(), plan, const_cast<char*>(kSomewhere), nullptr), StartsWith("search: "));
  std::unique_ptr<DeviceRows> rows;
  DeviceBudget budget(int64_t{1} << 40);
  EXPECT_THAT(DeviceRows::Create({1, 64, 64, DType::kF16, 100}, &budget, &rows), StartsWith("cudaMalloc: "));
  EXPECT_EQ(rows, nullptr);
  EXPECT_EQ(budget.used(), 0) << "what was taken is given back";
}

#endif  // MNEME_CUDA

}  // namespace
}  // namespace mneme::cuda
