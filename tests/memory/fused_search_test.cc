// Where nothing can fail any more, heads are fused while others are searched; else after all searches. The outputs do
// not tell.

#include "tests/memory/attend_call.h"

namespace mneme {
namespace {

TEST(FusedSearchTest, GivesTheBitsOfSearchThenFusion) {
  const TempFolder folder;
  const ModelCard card = UnequalCard();
  const auto store = OpenStore(folder.store());
  const auto memory = *store->CreateMemory("m", card, MemoryOptions());
  Oracle oracle(card, MemoryOptions());
  AppendTokens(*memory, &oracle, 5, 0, 3000);
  const auto pool = MakeThreadPool(3);
  TestRandom random(9);
  for (const size_t layer : {0, 1}) {
    for (const int64_t queries : {1, 3, 8, 9}) {
      for (const Fusion fusion : {Fusion::kJoint, Fusion::kGated, Fusion::kMemoryOnly}) {
        for (const bool some_search : {true, false}) {
          SCOPED_TRACE(absl::StrCat("layer ", layer, ", ", queries, " queries, fusion ", static_cast<int>(fusion),
                                    some_search ? ", one KV head searches" : ""));
          AttendCase made = MixedHeads(card, layer, queries, PositionPolicy::kAsStored);
          made.fusion = fusion;
          made.sequences[0].memory = memory.get();
          made.sequences[0].oracle = &oracle;
          made.sequences.push_back(made.sequences[0]);
          if (some_search) {
            for (int64_t head = 0; head < made.layer.group(); ++head) made.heads[static_cast<size_t>(head)].top_k = 0;
          }
          AttendCall call(random, made);
          // Without statuses two sequences are read for before either is written.
          ASSERT_OK(call.Run(*pool));
          const AttendResult after = call.result();
          call.Check();
          std::vector<absl::Status> statuses(2);
          call.request().statuses = absl::MakeSpan(statuses);
          for (Executor* const executor : {&InlineExecutor(), pool.get()}) {
            ASSERT_OK(call.Run(*executor));
            EXPECT_TRUE(call.result() == after);
          }
          EXPECT_OK(statuses[0]);
          EXPECT_OK(statuses[1]);
        }
      }
    }
  }
}

}  // namespace
}  // namespace mneme
