// SPDX-License-Identifier: Apache-2.0
// Many readers and one writer of memories that have mirrors.

#include <atomic>
#include <thread>

#include "tests/capi/device/emulated.h"

namespace mneme {
namespace {

class ThreadsTest : public DeviceTest {};

// Each reader searches one snapshot twice: with f16 queries, which the device serves if it can, and with the same
// numbers in f32, which the CPU serves.
TEST_F(ThreadsTest, ReadersSeeTheirSnapshotsDuringAllChanges) {
  OpenStores();
  mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
  options.segment_tokens = 256;
  options.max_tokens = 150;
  options.pinned_tokens = 3;
  Create("a", options);
  Create("b", options);
  Append("a", 60);
  Append("b", 30);
  std::atomic<int> differences{0}, refused{0}, reading{3};
  const auto read = [&](uint32_t seed) {
    std::mt19937 random(seed);
    for (int i = 0; i < 25; ++i) {
      mneme_memory* const both[2] = {memories_.at("a")[0], memories_.at("b")[0]};
      mneme_snapshot* snapshots[2] = {};
      for (int m = 0; m < 2; ++m) refused += mneme_snapshot_create(both[m], &snapshots[m]) != MNEME_OK;
      AnyTensor query(DType::kF16, {2, 4, 64}), wide(DType::kF32, {2, 4, 64});
      query.Fill(random);
      const std::vector<float> floats = query.Floats();
      std::memcpy(wide.data.data(), floats.data(), floats.size() * sizeof(float));
      std::vector<int64_t> found[2];
      for (int turn = 0; turn < 2; ++turn) {
        AnyTensor output(DType::kF32, {2, 4, 128});
        const int64_t offsets[] = {0, 1, 2};
        found[turn].assign(2 * 4 * 8, -7);
        mneme_attend_args args = MNEME_ATTEND_ARGS_INIT;
        args.layer = 3;
        args.fusion = MNEME_FUSION_MEMORY_ONLY;
        args.default_top_k = 8;
        args.query = turn == 0 ? &query.view : &wide.view;
        args.query_offsets = offsets;
        args.snapshots = snapshots;
        args.output = &output.view;
        args.retrieved_tokens = found[turn].data();
        args.retrieved_stride = 8;
        refused += mneme_attend(both, 2, &args) != MNEME_OK;
      }
      differences += found[0] != found[1];
      for (mneme_snapshot* const snapshot : snapshots) mneme_snapshot_release(snapshot);
    }
    --reading;
  };
  std::vector<std::thread> readers;
  for (uint32_t i = 0; i < 3; ++i) readers.emplace_back(read, 100 + i);
  for (int i = 0; reading > 0; ++i) {
    const std::string name = i % 2 == 0 ? "a" : "b";
    Append(name, 1 + i % 7);
    if (i % 5 == 4)
      Both(name, [&](mneme_memory* memory) { return mneme_memory_truncate(memory, NextToken(name) - 3); });
    if (i % 11 == 10) Both(name, [](mneme_memory* memory) { return mneme_memory_evict(memory, 40); });
    if (i % 13 == 12)
      Both(name, [](mneme_memory* memory) { return mneme_memory_commit(memory, MNEME_DURABILITY_BUFFERED, nullptr); });
    if (HasFailure()) break;
  }
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(differences, 0);
  EXPECT_EQ(refused, 0);
  EXPECT_GT(Stats().device_searched_sequences, 0);
  TwinCall call;
  PlainCall(call, {"a", "b"}, DType::kF16);
  ExpectSame(call);
}

}  // namespace
}  // namespace mneme
