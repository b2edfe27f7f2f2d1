// SPDX-License-Identifier: Apache-2.0
// struct_size: older, newer, absent and absurd ones, of every struct.

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "tests/capi/calls.h"

namespace mneme {
namespace {

// A struct of `size` bytes that starts like `known`, and otherwise holds `tail`.
template <typename Struct>
std::vector<unsigned char> Resized(const Struct& known, size_t size, unsigned char tail = 0) {
  std::vector<unsigned char> bytes(size, tail);
  std::memcpy(bytes.data(), &known, std::min(size, sizeof(known)));
  std::memcpy(bytes.data(), &size, sizeof(size));
  return bytes;
}

// `call` takes a struct that it reads; `name` is how messages call it.
template <typename Struct>
void CheckInput(const std::string& name, const Struct& good, const std::function<mneme_status(const Struct*)>& call) {
  SCOPED_TRACE(name);
  for (const size_t size : {size_t{0}, size_t{1}, sizeof(size_t), size_t{65537}, ~size_t{0}}) {
    SCOPED_TRACE(size);
    Struct wrong = good;
    wrong.struct_size = size;
    ExpectRefused(call(&wrong), MNEME_STATUS_INVALID_ARGUMENT, name + ".struct_size");
  }
  for (const size_t more : {size_t{1}, size_t{8}, size_t{200}}) {
    SCOPED_TRACE(more);
    const std::vector<unsigned char> set = Resized(good, sizeof(Struct) + more, 1);
    ExpectRefused(call(reinterpret_cast<const Struct*>(set.data())), MNEME_STATUS_UNIMPLEMENTED, name);
    const std::vector<unsigned char> clear = Resized(good, sizeof(Struct) + more);
    EXPECT_OK(call(reinterpret_cast<const Struct*>(clear.data())));
  }
  EXPECT_OK(call(&good));
}

// `call` fills a struct.
template <typename Struct>
void CheckOutput(const std::string& name, const Struct& init, const std::function<mneme_status(Struct*)>& call) {
  SCOPED_TRACE(name);
  ExpectRefused(call(nullptr), MNEME_STATUS_INVALID_ARGUMENT, name);
  for (const size_t size : {size_t{0}, sizeof(size_t), size_t{65537}, ~size_t{0}}) {
    SCOPED_TRACE(size);
    Struct wrong;
    std::memset(&wrong, 0x5a, sizeof(wrong));
    wrong.struct_size = size;
    ExpectRefused(call(&wrong), MNEME_STATUS_INVALID_ARGUMENT, name + ".struct_size");
    std::vector<unsigned char> bytes(sizeof(Struct));
    std::memcpy(bytes.data(), &wrong, sizeof(wrong));
    EXPECT_EQ(std::vector<unsigned char>(bytes.begin() + sizeof(size_t), bytes.end()),
              std::vector<unsigned char>(sizeof(Struct) - sizeof(size_t), 0x5a));
  }
  Struct whole = init;
  ASSERT_OK(call(&whole));
  EXPECT_EQ(whole.struct_size, sizeof(Struct));
  // An older caller gets what it knows, and nothing beyond it is written.
  for (size_t size = 16; size < sizeof(Struct); size += 8) {
    std::vector<unsigned char> older = Resized(init, size);
    older.resize(sizeof(Struct), 0x5a);
    ASSERT_OK(call(reinterpret_cast<Struct*>(older.data())));
    EXPECT_EQ(std::memcmp(older.data() + sizeof(size_t), reinterpret_cast<const char*>(&whole) + sizeof(size_t),
                          size - sizeof(size_t)),
              0);
    for (size_t i = size; i < older.size(); ++i) ASSERT_EQ(older[i], 0x5a) << "byte " << i << " of " << size;
  }
  // A newer caller's fields are cleared.
  std::vector<unsigned char> newer = Resized(init, sizeof(Struct) + 24, 0x77);
  newer.resize(sizeof(Struct) + 32, 0x5a);
  ASSERT_OK(call(reinterpret_cast<Struct*>(newer.data())));
  for (size_t i = sizeof(Struct); i < sizeof(Struct) + 24; ++i) ASSERT_EQ(newer[i], 0);
  for (size_t i = sizeof(Struct) + 24; i < newer.size(); ++i) ASSERT_EQ(newer[i], 0x5a);
}

using StructsTest = CapiTest;

TEST_F(StructsTest, Inputs) {
  CheckInput<mneme_layer_desc>("layer", LayerDesc(1), [](const mneme_layer_desc* layer) {
    mneme_card* card = nullptr;
    EXPECT_OK(mneme_card_create("m", "f", &card));
    const mneme_status status = mneme_card_add_layer(card, layer);
    mneme_card_release(card);
    return status;
  });
  CheckInput<mneme_store_options>("options", MNEME_STORE_OPTIONS_INIT, [&](const mneme_store_options* options) {
    mneme_store* store = nullptr;
    const mneme_status status = mneme_store_open((folder_.path() + "/other").c_str(), options, &store);
    if (status != MNEME_OK) return status;
    EXPECT_OK(mneme_store_close(store));
    return status;
  });
  CheckInput<mneme_memory_options>("options", MNEME_MEMORY_OPTIONS_INIT, [&](const mneme_memory_options* options) {
    mneme_memory* memory = nullptr;
    const mneme_status status = mneme_memory_create(store_, "new", card_, options, &memory);
    if (status != MNEME_OK) return status;
    EXPECT_OK(mneme_memory_close(memory));
    EXPECT_OK(mneme_memory_drop(store_, "new"));
    return status;
  });
  Tensor keys({1, kKvHeads, kKeyDim}), values({1, kKvHeads, kValueDim});
  keys.Fill(1);
  values.Fill(2);
  mneme_memory_append_args append = MNEME_MEMORY_APPEND_ARGS_INIT;
  append.layer = kLayer;
  append.keys = &keys.view;
  append.values = &values.view;
  CheckInput<mneme_memory_append_args>(
      "args", append, [&](const mneme_memory_append_args* args) { return mneme_memory_append(memory_, args); });
  mneme_memory_read_args read = MNEME_MEMORY_READ_ARGS_INIT;
  read.layer = kLayer;
  read.tokens = 1;
  read.keys = &keys.view;
  CheckInput<mneme_memory_read_args>(
      "args", read, [&](const mneme_memory_read_args* args) { return mneme_memory_read(memory_, args); });
  const std::string file = folder_.path() + "/m.safetensors";
  mneme_memory_export_args exported = MNEME_MEMORY_EXPORT_ARGS_INIT;
  exported.path = file.c_str(), exported.overwrite = 1;
  CheckInput<mneme_memory_export_args>(
      "args", exported, [&](const mneme_memory_export_args* args) { return mneme_memory_export(memory_, args); });
  mneme_memory_import_args imported = MNEME_MEMORY_IMPORT_ARGS_INIT;
  imported.path = file.c_str(), imported.name = "imported";
  CheckInput<mneme_memory_import_args>("args", imported, [&](const mneme_memory_import_args* args) {
    mneme_memory* memory = nullptr;
    const mneme_status status = mneme_memory_import(store_, args, &memory);
    if (status != MNEME_OK) return status;
    EXPECT_OK(mneme_memory_close(memory));
    EXPECT_OK(mneme_memory_drop(store_, "imported"));
    return status;
  });
  AttendCall attend(memory_);
  CheckInput<mneme_attend_args>("args", attend.args, [&](const mneme_attend_args* args) {
    attend.given = args;
    return attend.Run();
  });
  AttendBackwardCall backward(memory_);
  CheckInput<mneme_attend_backward_args>("args", backward.args, [&](const mneme_attend_backward_args* args) {
    backward.given = args;
    return backward.Run();
  });
  CheckInput<mneme_attend_args>("args.attend", backward.forward.args, [&](const mneme_attend_args* args) {
    backward.given = &backward.args;
    backward.args.attend = args;
    return backward.Run();
  });
  SearchCall search(memory_);
  CheckInput<mneme_search_args>("args", search.args, [&](const mneme_search_args* args) {
    search.given = args;
    return search.Run();
  });
  MergeCall merge;
  CheckInput<mneme_merge_args>("args", merge.args, [&](const mneme_merge_args* args) {
    merge.given = args;
    return merge.Run();
  });
}

TEST_F(StructsTest, Outputs) {
  CheckOutput<mneme_memory_info>("info", MNEME_MEMORY_INFO_INIT,
                                 [&](mneme_memory_info* info) { return mneme_memory_get_info(memory_, info); });
  CheckOutput<mneme_layer_desc>("layer", MNEME_LAYER_DESC_INIT,
                                [&](mneme_layer_desc* layer) { return mneme_memory_get_layer(memory_, 1, layer); });
  CheckOutput<mneme_store_stats>("stats", MNEME_STORE_STATS_INIT,
                                 [&](mneme_store_stats* stats) { return mneme_store_get_stats(store_, stats); });
  CheckOutput<mneme_store_verify_report>(
      "report", MNEME_STORE_VERIFY_REPORT_INIT,
      [&](mneme_store_verify_report* report) { return mneme_store_verify(store_, nullptr, nullptr, report); });
}

// An older caller's struct ends early: the fields that it lacks have the values of the *_INIT macros, whatever stands
// in its memory there.
TEST_F(StructsTest, WhatAnOlderCallerLacksHasItsDefault) {
  mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
  options.stored_dtype = MNEME_DTYPE_F32;
  options.max_tokens = -5;
  options.segment_tokens = -1;
  options.index = "nonsense";
  options.struct_size = offsetof(mneme_memory_options, max_tokens);
  mneme_memory* memory = nullptr;
  ASSERT_OK(mneme_memory_create(store_, "older", card_, &options, &memory));
  const mneme_memory_info info = InfoOf(memory);
  EXPECT_EQ(info.stored_dtype, MNEME_DTYPE_F32);
  EXPECT_EQ(info.max_tokens, 0);
  EXPECT_EQ(info.segment_tokens, 4096);
  EXPECT_STREQ(info.index, "auto");
  EXPECT_OK(mneme_memory_close(memory));

  SearchCall search(memory_);
  search.args.position_policy = 99;
  search.args.top_k = -7;
  search.args.tokens = nullptr;
  search.args.struct_size = offsetof(mneme_search_args, position_policy);
  // All but the missing outputs is accepted.
  ExpectRefused(search.Run(), MNEME_STATUS_INVALID_ARGUMENT, "args.tokens");

  mneme_layer_desc layer = LayerDesc(12);
  layer.rotary_layout = 99;
  layer.rotary_pairs = -1;
  layer.struct_size = offsetof(mneme_layer_desc, rotary_layout);
  EXPECT_OK(mneme_card_add_layer(card_, &layer));
}

// A missing struct is an argument like any other; missing options mean the defaults.
TEST_F(StructsTest, NoStructAtAll) {
  ExpectRefused(mneme_card_add_layer(card_, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "layer");
  ExpectRefused(mneme_memory_append(memory_, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "args");
  ExpectRefused(mneme_memory_read(memory_, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "args");
  mneme_memory* const memory = NewMemory("defaults", nullptr);
  EXPECT_EQ(InfoOf(memory).stored_dtype, MNEME_DTYPE_F16);
  EXPECT_OK(mneme_memory_close(memory));
}

}  // namespace
}  // namespace mneme
