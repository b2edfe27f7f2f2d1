// SPDX-License-Identifier: Apache-2.0
// Decoding steps that are captured once and replayed between random changes of the memories. Each replay equals what
// the CPU computes from the memories of the last update. Runs on the emulated device, and on a real one where there is
// one (capi_gpu_tests).

#include <algorithm>
#include <deque>

#include "tests/capi/device/decoding.h"

namespace mneme {
namespace {

class GraphLiveTest : public TwinTest {
 protected:
  std::vector<mneme_memory*> Memories(const std::vector<std::string>& names, size_t store) const {
    std::vector<mneme_memory*> memories;
    for (const std::string& name : names) memories.push_back(name.empty() ? nullptr : memories_.at(name)[store]);
    return memories;
  }

  // Updates the graph to the present memories and queues a replay. The caller compares.
  void Step(Decoding& decoding, const std::vector<std::string>& names, DecodingStep& step) {
    for (size_t store = 0; store < 2; ++store) step.memories[store] = Memories(names, store);
    decoding.Fill(step, random_);
    ASSERT_OK(decoding.Update(step));
    decoding.Expect(step);
    decoding.Replay(step);
  }

  void Change(const std::string& name, DType type) {
    switch (random_() % 12) {
      case 0: Append(name, static_cast<int64_t>(random_() % 150), DType::kF32); break;
      case 1: AppendFromDevice(name, static_cast<int64_t>(1 + random_() % 3), type); break;
      case 2:
      case 3: {  // as after a rejected draft
        const int64_t tokens = std::max<int64_t>(0, NextToken(name) - static_cast<int64_t>(random_() % 9));
        Both(name, [&](mneme_memory* memory) { return mneme_memory_truncate(memory, tokens); });
        Append(name, static_cast<int64_t>(random_() % 9), type);
        break;
      }
      case 4: TruncateAnywhere(name); break;
      case 5: EvictSome(name); break;
      case 6:
        Both(name,
             [](mneme_memory* memory) { return mneme_memory_commit(memory, MNEME_DURABILITY_BUFFERED, nullptr); });
        break;
      case 7:
        Both(name,
             [](mneme_memory* memory) { return mneme_memory_commit(memory, MNEME_DURABILITY_BUFFERED, nullptr); });
        Close(name);
        Open(name);
        break;
      case 8: forked_.push_back(ForkAnywhere(name)); break;
      case 9: {  // a call outside the graph
        TwinCall call;
        RandomCall(call, {name}, type);
        ExpectSame(call);
        break;
      }
      default: Append(name, static_cast<int64_t>(1 + random_() % 3), type);
    }
  }

  void Live(DType stored, DType type, int steps) {
    Create("a", Options(stored));
    Create("b", Options(stored, 200, 7));
    DecodingRules rules;
    rules.type = type;
    rules.output = static_cast<DType>(random_() % 3);
    rules.batch = 2;
    rules.local_rows = 12;
    rules.bias = -0.5f;
    rules.decay = 0.3f;
    Decoding joint(stores_[0], *runtime_, stream_, rules);
    rules.local_rows = 0;
    rules.fusion = MNEME_FUSION_MEMORY_ONLY;
    rules.decay = 0;
    rules.top_k = 20;
    Decoding alone(stores_[0], *runtime_, stream_, rules);
    for (Decoding* const decoding : {&joint, &alone}) {
      ASSERT_OK(decoding->Capture(Memories({"a", "b"}, 0)));
      ASSERT_TRUE(decoding->ready());
    }
    Append("a", 40, type);
    Append("b", 3, type);
    std::deque<std::pair<Decoding*, DecodingStep>> running;
    for (int i = 0; i < steps; ++i) {
      SCOPED_TRACE("step " + std::to_string(i));
      Change(random_() % 2 == 0 ? "a" : "b", type);
      if (HasFailure()) return;
      Decoding* const decoding = random_() % 3 != 0 ? &joint : &alone;
      DecodingStep& step = running.emplace_back(std::piecewise_construct, std::tuple(decoding), std::tuple()).second;
      std::vector<std::string> names = {"a", "b"};
      if (random_() % 4 == 0) std::swap(names[0], names[1]);
      if (random_() % 6 == 0) names[random_() % 2] = "";
      if (!forked_.empty() && random_() % 2 == 0) names[random_() % 2] = forked_.back();
      if (random_() % 4 == 0) {
        const auto first = static_cast<int64_t>(random_() % 50);
        step.begin = {first, 0};
        step.end = {first + static_cast<int64_t>(random_() % 60), 1000000};
      }
      if (decoding == &joint && random_() % 2 == 0) {
        const auto first = static_cast<int64_t>(1 + random_() % 12);
        step.local_offsets = {0, first, first + static_cast<int64_t>(random_() % 12)};
      }
      if (random_() % 4 == 0) step.positions = {static_cast<int64_t>(random_() % 500), 300};
      Step(*decoding, names, step);
      if (HasFailure()) return;
      // Replays may still read a fork that is closed.
      if (!forked_.empty() && random_() % 3 == 0) {
        Close(forked_.back());
        forked_.pop_back();
      }
      if (running.size() < 1 + random_() % 8) continue;
      Finish();
      for (const auto& [of, done] : running) of->Compare(done);
      running.clear();
      if (HasFailure()) return;
    }
    Finish();
    for (const auto& [of, done] : running) of->Compare(done);
  }

  std::vector<std::string> forked_;
};

TEST_F(GraphLiveTest, AReplayReadsTheMemoriesOfTheUpdateF16) {
  OpenStores();
  Live(DType::kF16, DType::kF16, 80);
}
TEST_F(GraphLiveTest, AReplayReadsTheMemoriesOfTheUpdateBF16) {
  OpenStores();
  Live(DType::kBF16, DType::kBF16, 50);
}
TEST_F(GraphLiveTest, AReplayReadsTheMemoriesOfTheUpdateI8) {
  OpenStores();
  Live(DType::kI8, DType::kF16, 50);
}

// Every kind of fusion and mask, with bias, decay and gate.
TEST_F(GraphLiveTest, AReplayEqualsTheCapturedCall) {
  OpenStores();
  Create("m", Options(DType::kF16, 0, 3));
  Append("m", 30);
  for (const int32_t fusion :
       {MNEME_FUSION_JOINT, MNEME_FUSION_GATED, MNEME_FUSION_MEMORY_ONLY, MNEME_FUSION_LOCAL_ONLY}) {
    for (const int32_t mask : {MNEME_MASK_CAUSAL, MNEME_MASK_SLIDING_WINDOW, MNEME_MASK_NONE}) {
      SCOPED_TRACE("fusion " + std::to_string(fusion) + ", mask " + std::to_string(mask));
      DecodingRules rules;
      rules.fusion = fusion;
      rules.local_mask = mask;
      rules.local_rows = 9;
      rules.bias = 0.7f;
      rules.decay = 0.4f;
      rules.gate = -0.3f;
      Decoding decoding(stores_[0], *runtime_, stream_, rules);
      ASSERT_OK(decoding.Capture(Memories({"m"}, 0)));
      for (int i = 0; i < 3; ++i) {
        Append("m", 2);
        DecodingStep step;
        step.local_offsets = {0, 3 + 3 * i};
        Step(decoding, {"m"}, step);
        Finish();
        decoding.Compare(step);
        ASSERT_FALSE(HasFailure());
      }
    }
  }
}

}  // namespace
}  // namespace mneme
