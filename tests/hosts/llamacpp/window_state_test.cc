// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/src/window_state.h"

#include <string>

#include "gtest/gtest.h"

namespace mneme::llama {
namespace {

WindowState Example() {
  return {.settings = "some settings", .base = 7000, .first_position = 12, .next_position = 600, .cells = "cells"};
}

TEST(WindowStateTest, ComesBackAsItWas) {
  const std::string bytes = EncodeWindowState(Example());
  WindowState state;
  const Status status = DecodeWindowState(bytes, &state);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(state.settings, "some settings");
  EXPECT_EQ(state.base, 7000);
  EXPECT_EQ(state.first_position, 12);
  EXPECT_EQ(state.next_position, 600);
  EXPECT_EQ(state.cells, "cells");
}

TEST(WindowStateTest, RefusesOtherBytes) {
  const std::string bytes = EncodeWindowState(Example());
  WindowState state;
  // Cut before the cells, whose size is llama.cpp's to check.
  for (size_t size = 0; size + state.cells.size() + 5 < bytes.size(); ++size) {
    EXPECT_EQ(DecodeWindowState(bytes.substr(0, size), &state).code(), MNEME_STATUS_DATA_LOSS) << size;
  }
  EXPECT_EQ(DecodeWindowState("something of another program", &state).code(), MNEME_STATUS_DATA_LOSS);
  WindowState backwards = Example();
  backwards.next_position = 3;
  EXPECT_EQ(DecodeWindowState(EncodeWindowState(backwards), &state).code(), MNEME_STATUS_DATA_LOSS);
  WindowState negative = Example();
  negative.base = -1;
  EXPECT_EQ(DecodeWindowState(EncodeWindowState(negative), &state).code(), MNEME_STATUS_DATA_LOSS);
}

TEST(WindowStateTest, SettingsTellCachesApart) {
  llama_context_params params = llama_context_default_params();
  const std::string plain = WindowSettings(params, false);
  EXPECT_NE(WindowSettings(params, true), plain);
  params.type_v = GGML_TYPE_F32;
  EXPECT_NE(WindowSettings(params, false), plain);
  params = llama_context_default_params();
  params.swa_full = !params.swa_full;
  EXPECT_NE(WindowSettings(params, false), plain);
}

}  // namespace
}  // namespace mneme::llama
