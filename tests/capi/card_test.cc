// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "tests/capi/testing.h"

namespace mneme {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int32_t kMost = std::numeric_limits<int32_t>::max(), kLeast = std::numeric_limits<int32_t>::min();

TEST(CardTest, CreateChecksItsTexts) {
  auto* const untouched = reinterpret_cast<mneme_card*>(uintptr_t{0x5a5a});
  mneme_card* card = untouched;
  const std::string longest(1023, 'x'), longer(1024, 'x');
  ExpectRefused(mneme_card_create(nullptr, "f", &card), MNEME_STATUS_INVALID_ARGUMENT, "model_name");
  ExpectRefused(mneme_card_create("m", nullptr, &card), MNEME_STATUS_INVALID_ARGUMENT, "weights_fingerprint");
  ExpectRefused(mneme_card_create("m", "f", nullptr), MNEME_STATUS_INVALID_ARGUMENT, "card");
  ExpectRefused(mneme_card_create("", "f", &card), MNEME_STATUS_INVALID_ARGUMENT, "model_name");
  ExpectRefused(mneme_card_create("m", "", &card), MNEME_STATUS_INVALID_ARGUMENT, "weights_fingerprint");
  ExpectRefused(mneme_card_create(longer.c_str(), "f", &card), MNEME_STATUS_INVALID_ARGUMENT, "model_name");
  ExpectRefused(mneme_card_create("m", longer.c_str(), &card), MNEME_STATUS_INVALID_ARGUMENT, "weights_fingerprint");
  EXPECT_EQ(card, untouched);
  ASSERT_OK(mneme_card_create(longest.c_str(), longest.c_str(), &card));
  mneme_card_release(card);
  ASSERT_OK(mneme_card_create("\xff odd \x01 bytes", "\n", &card));
  mneme_card_release(card);
  mneme_card_release(nullptr);
}

TEST(CardTest, EveryFieldOfALayerIsChecked) {
  struct Case {
    const char* argument;
    std::function<void(mneme_layer_desc&)> spoil;
  };
  const float not_finite[] = {1, kNaN, 1, 1}, infinite[] = {1, 1, 1, kInfinity};
  const Case cases[] = {
      {"layer.layer", [](auto& l) { l.layer = -1; }},
      {"layer.layer", [](auto& l) { l.layer = kLeast; }},
      {"q_heads", [](auto& l) { l.q_heads = 0; }},
      {"q_heads", [](auto& l) { l.q_heads = -4; }},
      {"q_heads", [](auto& l) { l.q_heads = kMost; }},
      {"q_heads", [](auto& l) { l.q_heads = 5; }},
      {"kv_heads", [](auto& l) { l.kv_heads = 0; }},
      {"kv_heads", [](auto& l) { l.kv_heads = -1; }},
      {"kv_heads", [](auto& l) { l.kv_heads = kLeast; }},
      {"kv_heads", [](auto& l) { l.kv_heads = kMost; }},
      {"key_dim",
       [](auto& l) {
         l.key_dim = 0;
         l.rotary_layout = l.rotary_pairs = 0;
       }},
      {"key_dim",
       [](auto& l) {
         l.key_dim = kLeast;
         l.rotary_layout = l.rotary_pairs = 0;
       }},
      {"key_dim", [](auto& l) { l.key_dim = kMost; }},
      {"value_dim", [](auto& l) { l.value_dim = 0; }},
      {"value_dim", [](auto& l) { l.value_dim = -6; }},
      {"value_dim", [](auto& l) { l.value_dim = kMost; }},
      {"scale", [](auto& l) { l.scale = -1; }},
      {"scale", [](auto& l) { l.scale = kNaN; }},
      {"scale", [](auto& l) { l.scale = kInfinity; }},
      {"soft_cap", [](auto& l) { l.soft_cap = -1; }},
      {"soft_cap", [](auto& l) { l.soft_cap = kNaN; }},
      {"soft_cap", [](auto& l) { l.soft_cap = kInfinity; }},
      {"window", [](auto& l) { l.window = -1; }},
      {"window", [](auto& l) { l.window = kLeast; }},
      {"rotary_layout", [](auto& l) { l.rotary_layout = -1; }},
      {"rotary_layout", [](auto& l) { l.rotary_layout = 3; }},
      {"rotary_layout", [](auto& l) { l.rotary_layout = kMost; }},
      {"rotary_pairs", [](auto& l) { l.rotary_layout = MNEME_ROTARY_NONE; }},
      {"rotary_pairs", [](auto& l) { l.rotary_pairs = 0; }},
      {"rotary_pairs", [](auto& l) { l.rotary_pairs = 5; }},
      {"rotary_pairs", [](auto& l) { l.rotary_pairs = -1; }},
      {"rotary_pairs", [](auto& l) { l.rotary_pairs = kMost; }},
      {"rotary_inverse_frequencies", [](auto& l) { l.rotary_inverse_frequencies = nullptr; }},
      {"rotary_inverse_frequencies", [&](auto& l) { l.rotary_inverse_frequencies = not_finite; }},
      {"rotary_inverse_frequencies", [&](auto& l) { l.rotary_inverse_frequencies = infinite; }},
      {"rotary_magnitude", [](auto& l) { l.rotary_magnitude = -1; }},
      {"rotary_magnitude", [](auto& l) { l.rotary_magnitude = kNaN; }},
      {"rotary_magnitude", [](auto& l) { l.rotary_magnitude = kInfinity; }},
  };
  mneme_card* card = nullptr;
  ASSERT_OK(mneme_card_create("m", "f", &card));
  for (size_t i = 0; i < std::size(cases); ++i) {
    SCOPED_TRACE(i);
    mneme_layer_desc desc = LayerDesc(3);
    cases[i].spoil(desc);
    ExpectRefused(mneme_card_add_layer(card, &desc), MNEME_STATUS_INVALID_ARGUMENT, cases[i].argument);
  }
  const mneme_layer_desc good = LayerDesc(3);
  ExpectRefused(mneme_card_add_layer(nullptr, &good), MNEME_STATUS_INVALID_ARGUMENT, "card");
  ExpectRefused(mneme_card_add_layer(card, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "layer");
  // None of the refused ones was added: 3 still can be, and then only greater numbers.
  EXPECT_OK(mneme_card_add_layer(card, &good));
  ExpectRefused(mneme_card_add_layer(card, &good), MNEME_STATUS_INVALID_ARGUMENT, "layer.layer");
  mneme_layer_desc below = LayerDesc(2), above = LayerDesc(kMost);
  ExpectRefused(mneme_card_add_layer(card, &below), MNEME_STATUS_INVALID_ARGUMENT, "layer.layer");
  EXPECT_OK(mneme_card_add_layer(card, &above));
  mneme_card_release(card);
}

using CardUseTest = CapiTest;

TEST_F(CardUseTest, AMemoryKeepsItsCardWhenTheHostsGrows) {
  mneme_layer_desc more = LayerDesc(9);
  ASSERT_OK(mneme_card_add_layer(card_, &more));
  EXPECT_EQ(InfoOf(memory_).layers, 2);
  mneme_memory* memory = nullptr;
  ExpectRefused(mneme_memory_open(store_, "m", card_, &memory), MNEME_STATUS_FAILED_PRECONDITION, "number of layers");
}

TEST_F(CardUseTest, AForeignCardIsRefusedFieldByField) {
  const std::function<void(mneme_layer_desc&)> changes[] = {
      [](auto& l) { l.q_heads = 2; },
      [](auto& l) { l.kv_heads = 4; },
      [](auto& l) { l.key_dim = 16; },
      [](auto& l) { l.value_dim = 8; },
      [](auto& l) { l.scale = 0.25f; },
      [](auto& l) { l.soft_cap = 30; },
      [](auto& l) { l.window = 128; },
      [](auto& l) { l.rotary_layout = MNEME_ROTARY_INTERLEAVED; },
      [](auto& l) { l.rotary_pairs = 3; },
      [](auto& l) {
        static constexpr float kOthers[] = {1.0f, 0.1f, 0.02f, 0.001f};
        l.rotary_inverse_frequencies = kOthers;
      },
      [](auto& l) { l.rotary_magnitude = 1.5f; },
  };
  const char* const names[] = {
      "q_heads",         "kv_heads", "key_dim",       "value_dim",    "scale",
      "soft_cap",        "window",   "rotary_layout", "rotary_pairs", "rotary_inverse_frequencies[2]",
      "rotary_magnitude"};
  auto* const untouched = reinterpret_cast<mneme_memory*>(uintptr_t{0x5a5a});
  for (size_t i = 0; i < std::size(changes); ++i) {
    SCOPED_TRACE(names[i]);
    mneme_card* card = nullptr;
    ASSERT_OK(mneme_card_create("model", "sha256:0", &card));
    mneme_layer_desc first = LayerDesc(kLayer), second = LayerDesc(kOtherLayer);
    changes[i](second);
    ASSERT_OK(mneme_card_add_layer(card, &first));
    ASSERT_OK(mneme_card_add_layer(card, &second));
    mneme_memory* memory = untouched;
    ExpectRefused(mneme_memory_open(store_, "m", card, &memory), MNEME_STATUS_FAILED_PRECONDITION,
                  std::string("layer 7 ") + names[i]);
    EXPECT_EQ(memory, untouched);
    mneme_card_release(card);
  }
  mneme_card* const renamed = NewCard("another");
  mneme_memory* memory = untouched;
  ExpectRefused(mneme_memory_open(store_, "m", renamed, &memory), MNEME_STATUS_FAILED_PRECONDITION, "model_name");
  mneme_card_release(renamed);
}

TEST_F(CardUseTest, AMemoryTellsTheLayersOfItsCard) {
  const int32_t numbers[] = {kLayer, kOtherLayer};
  for (int32_t i = 0; i < 2; ++i) {
    SCOPED_TRACE(i);
    const mneme_layer_desc made = LayerDesc(numbers[i]);
    mneme_layer_desc told = MNEME_LAYER_DESC_INIT;
    ASSERT_OK(mneme_memory_get_layer(memory_, i, &told));
    EXPECT_EQ(told.layer, made.layer);
    EXPECT_EQ(told.q_heads, kQueryHeads);
    EXPECT_EQ(told.kv_heads, kKvHeads);
    EXPECT_EQ(told.key_dim, kKeyDim);
    EXPECT_EQ(told.value_dim, kValueDim);
    EXPECT_EQ(told.scale, 0.5f);
    EXPECT_EQ(told.soft_cap, 0.0f);
    EXPECT_EQ(told.window, 0);
    EXPECT_EQ(told.rotary_layout, MNEME_ROTARY_HALVES);
    EXPECT_EQ(told.rotary_magnitude, 1.0f);  // the default, resolved
    ASSERT_EQ(told.rotary_pairs, 4);
    for (int pair = 0; pair < 4; ++pair) {
      EXPECT_EQ(told.rotary_inverse_frequencies[pair], made.rotary_inverse_frequencies[pair]);
    }
  }
  mneme_layer_desc untouched = MNEME_LAYER_DESC_INIT;
  for (const int32_t index : {-1, 2, kMost, kLeast}) {
    ExpectRefused(mneme_memory_get_layer(memory_, index, &untouched), MNEME_STATUS_OUT_OF_RANGE, "index");
  }
  ExpectRefused(mneme_memory_get_layer(memory_, 0, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "layer");
  EXPECT_EQ(untouched.q_heads, 0);
}

// A card that is made of what a memory tells is the memory's.
TEST_F(CardUseTest, ACardOfToldLayersIsTheMemorysOwn) {
  const mneme_memory_info info = InfoOf(memory_);
  mneme_card* card = nullptr;
  ASSERT_OK(mneme_card_create(info.model_name, info.weights_fingerprint, &card));
  for (int32_t i = 0; i < info.layers; ++i) {
    mneme_layer_desc layer = MNEME_LAYER_DESC_INIT;
    ASSERT_OK(mneme_memory_get_layer(memory_, i, &layer));
    ASSERT_OK(mneme_card_add_layer(card, &layer));
  }
  mneme_memory* again = nullptr;
  EXPECT_OK(mneme_memory_open(store_, "m", card, &again));
  EXPECT_OK(mneme_memory_close(again));
  mneme_card_release(card);
}

}  // namespace
}  // namespace mneme
