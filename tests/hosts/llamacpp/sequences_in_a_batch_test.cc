// SPDX-License-Identifier: Apache-2.0
// Several sequences in one batch, each with a memory of its own or sharing one, predict what they predict one by one.
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/hosts/llamacpp/testing.h"

namespace mneme::llama {
namespace {

constexpr int32_t kWindow = 64;
constexpr size_t kSequences = 3;
constexpr size_t kBlocks = 4;

const Dequantised& Model() {
  static const auto* model = new Dequantised(SmolPath());
  return *model;
}

ModelSettings Settings() {
  ModelSettings settings = SettingsFor(Model().path());
  settings.window = kWindow;
  return settings;
}

// A different stretch of the text for each sequence.
const std::vector<llama_token>& Text(size_t sequence) {
  static const std::vector<std::vector<llama_token>> texts = [] {
    std::vector<std::vector<llama_token>> made;
    for (size_t s = 0; s < kSequences; ++s) {
      made.push_back(TextTokens(Smol(), static_cast<int64_t>(s) * 4000, kBlocks * kWindow + 1));
    }
    return made;
  }();
  return texts[sequence];
}

// Logits of each sequence's last block, one after another.
using Prediction = std::vector<std::vector<float>>;

void Keep(std::span<const float> logits, Prediction* prediction) {
  prediction->emplace_back(logits.begin(), logits.end());
}

Prediction OneByOne(const Store& store, size_t sequence) {
  Session session(Model().model(), Settings());
  const Memory memory(store, "alone " + std::to_string(sequence), session, /*create=*/true, 0, "f16");
  session.Attach(0, memory.get(), MNEME_LLAMA_MODE_APPEND);
  const std::vector<llama_token> text = Text(sequence);
  Prediction prediction;
  for (size_t block = 0; block < kBlocks; ++block) {
    session.Decode(std::span(text).subspan(block * kWindow, kWindow), /*all_logits=*/true);
    for (int32_t i = 0; block + 1 == kBlocks && i < kWindow; ++i) Keep(session.Logits(i), &prediction);
  }
  session.Detach(0);
  return prediction;
}

void ExpectSame(const Prediction& expected, const Prediction& actual, const std::vector<llama_token>& text) {
  ASSERT_EQ(expected.size(), actual.size());
  Distance distance;
  for (size_t i = 0; i < expected.size(); ++i) {
    distance.Add(expected[i], actual[i], text[text.size() - expected.size() + i]);
  }
  std::cout << "mean KL " << distance.MeanDivergence() << ", same argmax " << 100 * distance.SameArgmax() << " %\n";
  EXPECT_LE(distance.MeanDivergence(), 1e-4);
  EXPECT_GE(distance.SameArgmax(), 0.98);
}

TEST(SequencesInABatchTest, EachWithItsOwnMemory) {
  const TemporaryFolder folder;
  const Store store(folder.path(), 2);
  Session session(Model().model(), Settings(), kSequences);
  std::vector<std::unique_ptr<Memory>> memories;
  for (size_t s = 0; s < kSequences; ++s) {
    memories.push_back(
        std::make_unique<Memory>(store, "together " + std::to_string(s), session, /*create=*/true, 0, "f16"));
    session.Attach(static_cast<llama_seq_id>(s), memories[s]->get(), MNEME_LLAMA_MODE_APPEND);
  }
  std::vector<Prediction> predictions(kSequences);
  for (size_t block = 0; block < kBlocks; ++block) {
    // Whole blocks one after another at first, then tokens of the sequences in turn.
    Batch batch;
    std::vector<size_t> owner;
    const auto add = [&](size_t s, size_t i) {
      batch.Add(Text(s)[block * kWindow + i], static_cast<llama_seq_id>(s), true);
      owner.push_back(s);
    };
    if (block + 1 < kBlocks) {
      for (size_t s = 0; s < kSequences; ++s) {
        for (size_t i = 0; i < kWindow; ++i) add(s, i);
      }
    } else {
      for (size_t i = 0; i < kWindow; ++i) {
        for (size_t s = 0; s < kSequences; ++s) add(s, i);
      }
    }
    ASSERT_EQ(mneme_llama_decode(session.adapter(), batch.get()), MNEME_OK) << mneme_llama_last_error();
    for (size_t i = 0; block + 1 == kBlocks && i < owner.size(); ++i) {
      Keep(session.Logits(static_cast<int32_t>(i)), &predictions[owner[i]]);
    }
  }
  for (size_t s = 0; s < kSequences; ++s) {
    EXPECT_EQ(memories[s]->Info().next_token, static_cast<int64_t>(kBlocks * kWindow));
    session.Detach(static_cast<llama_seq_id>(s));
    ExpectSame(OneByOne(store, s), predictions[s], Text(s));
  }
}

TEST(SequencesInABatchTest, ReadersShareAMemory) {
  const TemporaryFolder folder;
  const Store store(folder.path(), 2);
  Session session(Model().model(), Settings(), 2);
  const Memory memory(store, "document", session, /*create=*/true, 0, "f16");
  const std::vector<llama_token> document = Text(0);
  session.Attach(0, memory.get(), MNEME_LLAMA_MODE_APPEND);
  for (size_t begin = 0; begin + kWindow <= document.size(); begin += kWindow) {
    session.Decode(std::span(document).subspan(begin, kWindow), /*all_logits=*/false);
  }
  session.Detach(0);
  const int64_t held = memory.Info().next_token;

  std::vector<Prediction> alone(2);
  std::vector<Prediction> together(2);
  for (size_t s = 0; s < 2; ++s) {
    session.Attach(0, memory.get(), MNEME_LLAMA_MODE_READ);
    session.Decode(std::span(Text(s + 1)).first(kWindow), /*all_logits=*/true);
    for (int32_t i = 0; i < kWindow; ++i) Keep(session.Logits(i), &alone[s]);
    session.Detach(0);
  }
  Batch batch;
  for (size_t s = 0; s < 2; ++s) {
    session.Attach(static_cast<llama_seq_id>(s), memory.get(), MNEME_LLAMA_MODE_READ);
    for (size_t i = 0; i < kWindow; ++i) batch.Add(Text(s + 1)[i], static_cast<llama_seq_id>(s), true);
  }
  ASSERT_EQ(mneme_llama_decode(session.adapter(), batch.get()), MNEME_OK) << mneme_llama_last_error();
  for (int32_t i = 0; i < 2 * kWindow; ++i) Keep(session.Logits(i), &together[static_cast<size_t>(i / kWindow)]);
  for (size_t s = 0; s < 2; ++s) {
    session.Detach(static_cast<llama_seq_id>(s));
    std::vector<llama_token> text = Text(s + 1);
    text.resize(kWindow + 1);
    ExpectSame(alone[s], together[s], text);
  }
  EXPECT_EQ(memory.Info().next_token, held);
}

}  // namespace
}  // namespace mneme::llama
