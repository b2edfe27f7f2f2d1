// SPDX-License-Identifier: Apache-2.0
// Random sequences of all calls that change memories of a store with a device. Each result equals that of a store with
// the CPU alone. Runs on the emulated device, and on a real one where there is one (capi_gpu_tests).

#include <algorithm>

#include "tests/capi/device/testing.h"

namespace mneme {
namespace {

class LiveTest : public TwinTest {
 protected:
  // Random calls, each result compared.
  void Live(const std::vector<std::string>& names, DType query, int steps) {
    for (int step = 0; step < steps; ++step) {
      const std::string name = names[random_() % names.size()];
      SCOPED_TRACE("step " + std::to_string(step) + ", memory " + name);
      switch (random_() % 16) {
        case 0:
        case 1:
        case 2: Append(name, static_cast<int64_t>(1 + random_() % 3), query); break;
        case 3: Append(name, static_cast<int64_t>(random_() % 150), DType::kF32); break;
        case 4: TruncateAnywhere(name); break;
        case 5: EvictSome(name); break;
        case 6:
          Both(name,
               [](mneme_memory* memory) { return mneme_memory_commit(memory, MNEME_DURABILITY_BUFFERED, nullptr); });
          break;
        case 7: Both(name, [](mneme_memory* memory) { return mneme_memory_maintain(memory, nullptr, nullptr); }); break;
        case 8:
          Both(name,
               [](mneme_memory* memory) { return mneme_memory_commit(memory, MNEME_DURABILITY_BUFFERED, nullptr); });
          ReleaseSnapshots();
          Close(name);
          Open(name);
          break;
        case 9: {
          const std::string child = ForkAnywhere(name);
          TwinCall call;
          PlainCall(call, {child, name}, query);
          ExpectSame(call);
          Close(child);
          break;
        }
        case 10: TakeSnapshots(name); break;
        default: {
          TwinCall call;
          RandomCall(call, names, query);
          ExpectSame(call);
        }
      }
      if (HasFatalFailure() || HasNonfatalFailure()) return;
    }
  }

  void Random(const std::vector<std::string>& names, DType type) {
    for (int i = 0; i < 60; ++i) {
      SCOPED_TRACE("call " + std::to_string(i));
      AppendFromDevice(names[random_() % names.size()], static_cast<int64_t>(random_() % 30), type);
      TwinCall call;
      RandomCall(call, names, type);
      call.on_device = true;
      call.has_stream = random_() % 4 != 0;
      call.host_outputs = random_() % 2 == 0;
      call.local_gap = static_cast<int64_t>(random_() % 3) * 4;  // 4 is not a multiple of eight elements
      call.output_dtype = static_cast<DType>(random_() % 3);
      ExpectSame(call);
      if (HasFailure()) return;
    }
    const mneme_store_stats stats = Stats();
    EXPECT_GT(stats.host_staged_calls, 120 + 10) << "two appends a round, and calls that the kernels do not support";
    EXPECT_LT(stats.host_staged_calls, 120 + 50) << "calls that they support are not staged";
  }
};

TEST_F(LiveTest, FollowsAllChangesOfF16) {
  OpenStores();
  Create("free", Options(DType::kF16));
  Create("bound", Options(DType::kF16, 300));
  Create("pinned", Options(DType::kF16, 200, 7));
  Live({"free", "bound", "pinned"}, DType::kF16, 220);
  EXPECT_GT(Stats().device_searched_sequences, 50);
}

TEST_F(LiveTest, FollowsAllChangesOfBF16) {
  OpenStores();
  Create("free", Options(DType::kBF16));
  Create("pinned", Options(DType::kBF16, 200, 20));
  Live({"free", "pinned"}, DType::kBF16, 120);
  EXPECT_GT(Stats().device_searched_sequences, 25);
}

TEST_F(LiveTest, FollowsAllChangesOfI8) {
  OpenStores();
  Create("free", Options(DType::kI8));
  Create("pinned", Options(DType::kI8, 200, 20));
  Live({"free", "pinned"}, DType::kF16, 120);
  EXPECT_GT(Stats().device_searched_sequences, 25);
}

TEST_F(LiveTest, TensorsOnTheDeviceGiveTheResultsOfHostTensorsF16) {
  OpenStores();
  Create("free", Options(DType::kF16));
  Create("pinned", Options(DType::kF16, 100, 5));
  Random({"free", "pinned"}, DType::kF16);
}

TEST_F(LiveTest, TensorsOnTheDeviceGiveTheResultsOfHostTensorsBF16) {
  OpenStores();
  Create("free", Options(DType::kBF16));
  Create("bound", Options(DType::kBF16, 100));
  Random({"free", "bound"}, DType::kBF16);
}

TEST_F(LiveTest, TensorsOnTheDeviceGiveTheResultsOfHostTensorsI8) {
  OpenStores();
  Create("free", Options(DType::kI8));
  Random({"free"}, DType::kF16);
}

}  // namespace
}  // namespace mneme
