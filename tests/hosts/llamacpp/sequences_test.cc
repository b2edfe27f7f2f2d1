// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/src/sequences.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::llama {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A batch of tokens with given sequences and positions.
class Batch {
 public:
  Batch(std::vector<std::vector<llama_seq_id>> sequences, std::vector<llama_pos> positions)
      : sequences_(std::move(sequences)), positions_(std::move(positions)), tokens_(sequences_.size()) {
    for (std::vector<llama_seq_id>& ids : sequences_) {
      pointers_.push_back(ids.data());
      counts_.push_back(static_cast<int32_t>(ids.size()));
    }
  }
  llama_batch get() {
    return {static_cast<int32_t>(tokens_.size()),
            tokens_.data(),
            nullptr,
            positions_.empty() ? nullptr : positions_.data(),
            counts_.data(),
            pointers_.data(),
            nullptr};
  }

 private:
  std::vector<std::vector<llama_seq_id>> sequences_;
  std::vector<llama_pos> positions_;
  std::vector<llama_token> tokens_;
  std::vector<llama_seq_id*> pointers_;
  std::vector<int32_t> counts_;
};

std::map<llama_seq_id, Sequence> TwoSequences() {
  std::map<llama_seq_id, Sequence> sequences;
  sequences[0].next_position = 10;
  sequences[2].next_position = 5;
  return sequences;
}

TEST(SequencesTest, PlansPositionsAndRuns) {
  auto sequences = TwoSequences();
  Batch batch({{0}, {0}, {2}, {0}, {1}}, {10, 11, 5, 12, 77});
  BatchPlan plan;
  ASSERT_TRUE(PlanBatch(batch.get(), sequences, nullptr, false, &plan).ok());
  EXPECT_THAT(plan.positions, ElementsAre(10, 11, 5, 12, 77));
  EXPECT_THAT(plan.sequences, ElementsAre(0, 0, 2, 0, 1));
  ASSERT_EQ(plan.steps.size(), 2u);
  EXPECT_EQ(plan.steps[0].tokens, 3);
  EXPECT_EQ(plan.steps[1].tokens, 1);
  ASSERT_EQ(plan.runs.size(), 4u);
  EXPECT_EQ(plan.runs[0].end, 2);
  EXPECT_EQ(plan.runs[1].step, 1);
  EXPECT_EQ(plan.runs[2].step, 0);
  EXPECT_EQ(plan.runs[3].step, -1);
}

TEST(SequencesTest, FillsPositionsIn) {
  auto sequences = TwoSequences();
  Batch batch({{2}, {0}, {2}}, {});
  BatchPlan plan;
  ASSERT_TRUE(PlanBatch(batch.get(), sequences, nullptr, false, &plan).ok());
  EXPECT_THAT(plan.positions, ElementsAre(5, 10, 6));
}

TEST(SequencesTest, RefusesShiftedPositions) {
  auto sequences = TwoSequences();
  Batch batch({{0}}, {0});
  BatchPlan plan;
  const Status status = PlanBatch(batch.get(), sequences, nullptr, /*as_stored=*/true, &plan);
  EXPECT_EQ(status.code(), MNEME_STATUS_FAILED_PRECONDITION);
  EXPECT_THAT(status.message(),
              HasSubstr("position 0, expected 10; rotated keys as stored allow no shifted positions"));
}

TEST(SequencesTest, RefusesSharedTokensOfSequencesWithMemory) {
  auto sequences = TwoSequences();
  Batch batch({{1, 2}}, {5});
  BatchPlan plan;
  EXPECT_THAT(PlanBatch(batch.get(), sequences, nullptr, false, &plan).message(), HasSubstr("of which 2 has a memory"));
  Batch unrelated({{1, 3}}, {5});
  BatchPlan other;
  EXPECT_TRUE(PlanBatch(unrelated.get(), sequences, nullptr, false, &other).ok());
}

TEST(SequencesTest, WhatIsLocalIsNotRetrieved) {
  Sequence sequence;
  sequence.append = true;
  sequence.base = 100;
  sequence.first_position = 20;
  sequence.next_position = 50;
  sequence.memory_tokens = 150;
  EXPECT_EQ(sequence.LocalTokens(), 30);
  EXPECT_EQ(sequence.MemoryEnd(), 120);
  // A reader's window may begin within the memory or after it.
  sequence.append = false;
  EXPECT_EQ(sequence.MemoryEnd(), 120);
  sequence.first_position = 60;
  EXPECT_EQ(sequence.MemoryEnd(), 150);
}

}  // namespace
}  // namespace mneme::llama
