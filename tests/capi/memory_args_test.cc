// SPDX-License-Identifier: Apache-2.0
// Arguments of the calls that make, change and read one memory.

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "tests/capi/calls.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kMost = std::numeric_limits<int64_t>::max(), kLeast = std::numeric_limits<int64_t>::min();
constexpr int32_t kMost32 = std::numeric_limits<int32_t>::max(), kLeast32 = std::numeric_limits<int32_t>::min();

// Two tokens for mneme_memory_append.
struct AppendCall {
  AppendCall() {
    keys.Fill(21);
    values.Fill(22);
    args.layer = kLayer;
    args.keys = &keys.view;
    args.values = &values.view;
    args.positions = positions.data();
    args.token_ids = ids.data();
  }
  Tensor keys{{2, kKvHeads, kKeyDim}}, values{{2, kKvHeads, kValueDim}};
  std::vector<int64_t> positions{310, 311};
  std::vector<int32_t> ids{1, 2};
  mneme_memory_append_args args = MNEME_MEMORY_APPEND_ARGS_INIT;
};

struct AppendCase {
  std::string argument;
  std::function<void(AppendCall&)> spoil;
  mneme_status status = MNEME_STATUS_INVALID_ARGUMENT;
};

using MemoryArgsTest = CapiTest;

TEST_F(MemoryArgsTest, AppendRefuses) {
  std::vector<AppendCase> cases;
  const auto add = [&](const std::string& name, std::function<void(AppendCall&)> spoil,
                       mneme_status status = MNEME_STATUS_INVALID_ARGUMENT) {
    cases.push_back({name, spoil, status});
  };
  for (const int32_t layer : {0, 4, -1, kMost32, kLeast32}) {
    add("layer", [=](AppendCall& c) { c.args.layer = layer; });
  }
  add("args.keys", [](AppendCall& c) { c.args.keys = nullptr; });
  add("args.values", [](AppendCall& c) { c.args.values = nullptr; });
  for (Tensor AppendCall::*member : {&AppendCall::keys, &AppendCall::values}) {
    const std::string name = member == &AppendCall::keys ? "keys" : "values";
    add(name + ".data", [=](AppendCall& c) { (c.*member).view.data = nullptr; });
    add(name + ".data",
        [=](AppendCall& c) { (c.*member).view.data = reinterpret_cast<char*>((c.*member).view.data) + 3; });
    add(name + ".shape", [=](AppendCall& c) { (c.*member).view.shape = nullptr; });
    for (const int32_t dtype : {int32_t{MNEME_DTYPE_I8}, 0, -1, kMost32}) {
      add(name + ".dtype", [=](AppendCall& c) { (c.*member).view.dtype = dtype; });
    }
    add(
        name + ".device_type", [=](AppendCall& c) { (c.*member).view.device_type = MNEME_DEVICE_CUDA; },
        MNEME_STATUS_FAILED_PRECONDITION);
    add(name + ".device_type", [=](AppendCall& c) { (c.*member).view.device_type = -2; });
    for (const int32_t ndim : {0, 2, 4, -3, kMost32}) {
      add(name + ".ndim", [=](AppendCall& c) {
        (c.*member).shape.resize(4, 1);
        (c.*member).strides.resize(4, 1);
        (c.*member).view.shape = (c.*member).shape.data();
        (c.*member).view.strides = (c.*member).strides.data();
        (c.*member).view.ndim = ndim;
      });
    }
    for (size_t i = 0; i < 3; ++i) {
      add(name, [=](AppendCall& c) { (c.*member).shape[i] -= 1; });
      for (const int64_t extent : {int64_t{-1}, kMost, kLeast}) {
        add(name + ".shape[" + std::to_string(i) + "]", [=](AppendCall& c) { (c.*member).shape[i] = extent; });
      }
    }
    add(name + ".strides[2]", [=](AppendCall& c) { (c.*member).strides[2] = 3; });
    add(name + ".strides[0]", [=](AppendCall& c) { (c.*member).strides[0] = kLeast; });
    for (const float value : {kNaN, kInfinity, -kInfinity}) {
      add(name, [=](AppendCall& c) { (c.*member).data[5] = value; });
      add(name, [=](AppendCall& c) { (c.*member).data.back() = value; });
    }
  }
  for (const int64_t position : {kMost, kLeast, (int64_t{1} << 48) + 1}) {
    add("positions[1]", [=](AppendCall& c) { c.positions[1] = position; });
  }
  static const mneme_stream stream = {nullptr};
  add("args.stream", [](AppendCall& c) { c.args.stream = &stream; });
  const std::string before = StateOf(memory_);
  const int64_t next = InfoOf(memory_).next_token;
  for (size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(::testing::Message() << "case " << i << ": " << cases[i].argument);
    AppendCall call;
    cases[i].spoil(call);
    // The rows of keys are the measure of those of values.
    ExpectRefused(mneme_memory_append(memory_, &call.args), cases[i].status,
                  cases[i].argument == "keys" && call.keys.shape[0] == 1 ? "values" : cases[i].argument);
  }
  EXPECT_EQ(InfoOf(memory_).next_token, next);
  EXPECT_TRUE(StateOf(memory_) == before);
}

// Rows are written in their places before all is known to be good: what is refused there leaves nothing, whatever part
// of it was good, also where it would have begun a new piece of memory.
TEST_F(MemoryArgsTest, ARefusedAppendLeavesNoTrace) {
  for (const int32_t dtype : {MNEME_DTYPE_F32, MNEME_DTYPE_F16, MNEME_DTYPE_BF16, MNEME_DTYPE_I8}) {
    SCOPED_TRACE(dtype);
    mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
    options.stored_dtype = dtype;
    options.normalise_keys = dtype == MNEME_DTYPE_BF16;
    mneme_memory* const refused = NewMemory("refused" + std::to_string(dtype), &options);
    mneme_memory* const never = NewMemory("never" + std::to_string(dtype), &options);
    for (mneme_memory* const memory : {refused, never}) {
      EXPECT_OK(AppendTokens(memory, kLayer, 250, 1));
      EXPECT_OK(AppendTokens(memory, kOtherLayer, 251, 2));
    }
    for (const int64_t tokens : {1, 5, 20, 300}) {
      for (const bool of_keys : {true, false}) {
        Tensor keys({tokens, kKvHeads, kKeyDim}), values({tokens, kKvHeads, kValueDim});
        keys.Fill(31);
        values.Fill(32);
        (of_keys ? keys : values).data.back() = kNaN;
        mneme_memory_append_args args = MNEME_MEMORY_APPEND_ARGS_INIT;
        args.layer = kLayer;
        args.keys = &keys.view;
        args.values = &values.view;
        const std::string row = of_keys ? "keys" : "values";
        ExpectRefused(mneme_memory_append(refused, &args), MNEME_STATUS_INVALID_ARGUMENT, row);
        EXPECT_THAT(mneme_last_error(), HasSubstr("row " + std::to_string(tokens - 1) + " of head 1"));
      }
    }
    for (const int64_t tokens : {3, 20, 300}) {
      for (mneme_memory* const memory : {refused, never}) {
        EXPECT_OK(AppendTokens(memory, kLayer, tokens, 3));
        EXPECT_OK(AppendTokens(memory, kOtherLayer, tokens, 4));
      }
      EXPECT_TRUE(StateOf(refused).substr(sizeof(mneme_memory_info)) ==
                  StateOf(never).substr(sizeof(mneme_memory_info)));
    }
    EXPECT_EQ(InfoOf(refused).next_token, 573);
    EXPECT_OK(mneme_memory_close(refused));
    EXPECT_OK(mneme_memory_close(never));
  }
}

TEST_F(MemoryArgsTest, AnotherLayerMustAgreeOnPositions) {
  AppendCall call;
  call.args.layer = kOtherLayer;  // brings tokens 307 and 308, which layer 3 placed at 307 and 308
  call.positions = {307, 400};
  const std::string before = StateOf(memory_);
  ExpectRefused(mneme_memory_append(memory_, &call.args), MNEME_STATUS_INVALID_ARGUMENT, "positions[1]");
  EXPECT_TRUE(StateOf(memory_) == before);
  call.positions = {307, 308};
  EXPECT_OK(mneme_memory_append(memory_, &call.args));
  EXPECT_EQ(InfoOf(memory_).next_token, kTokens + 2);
}

TEST_F(MemoryArgsTest, WhatPassesTheRangeOfF16IsRefused) {
  mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
  options.stored_dtype = MNEME_DTYPE_F16;
  mneme_memory* const memory = NewMemory("half", &options);
  for (Tensor AppendCall::*member : {&AppendCall::keys, &AppendCall::values}) {
    AppendCall call;
    (call.*member).data[3] = 1e30f;
    ExpectRefused(mneme_memory_append(memory, &call.args), MNEME_STATUS_INVALID_ARGUMENT,
                  member == &AppendCall::keys ? "keys" : "values");
    EXPECT_EQ(InfoOf(memory).next_token, 0);
  }
  EXPECT_OK(mneme_memory_close(memory));
}

TEST_F(MemoryArgsTest, AppendTakesNoTokensAndBorrowedStrides) {
  Tensor none({0, kKvHeads, kKeyDim}), no_values({0, kKvHeads, kValueDim});
  mneme_memory_append_args args = MNEME_MEMORY_APPEND_ARGS_INIT;
  args.layer = kLayer;
  args.keys = &none.view;
  args.values = &no_values.view;
  const std::string before = StateOf(memory_);
  EXPECT_OK(mneme_memory_append(memory_, &args));
  none.view.data = no_values.view.data = nullptr;
  none.view.strides = nullptr;
  EXPECT_OK(mneme_memory_append(memory_, &args));
  EXPECT_TRUE(StateOf(memory_) == before);

  // Rows in reverse, heads exchanged: negative strides are strides.
  AppendCall forward, backward;
  backward.keys.view.data = backward.keys.data.data() + 3 * kKeyDim;
  backward.keys.strides = {-kKvHeads * kKeyDim, -kKeyDim, 1};
  backward.args.positions = forward.args.positions = nullptr;
  mneme_memory* const memory = NewMemory("strided");
  ASSERT_OK(mneme_memory_append(memory, &forward.args));
  ASSERT_OK(mneme_memory_append(memory, &backward.args));
  Tensor keys({4, kKvHeads, kKeyDim});
  mneme_memory_read_args read = MNEME_MEMORY_READ_ARGS_INIT;
  read.layer = kLayer;
  read.tokens = 4;
  read.keys = &keys.view;
  ASSERT_OK(mneme_memory_read(memory, &read));
  for (int64_t i = 0; i < 4; ++i) {  // four rows of two tokens and two heads
    for (int64_t d = 0; d < kKeyDim; ++d) {
      EXPECT_EQ(keys.data[static_cast<size_t>(i * kKeyDim + d)], keys.data[static_cast<size_t>((7 - i) * kKeyDim + d)]);
    }
  }
  EXPECT_OK(mneme_memory_close(memory));
}

TEST_F(MemoryArgsTest, ReadRefuses) {
  struct Call {
    Call() {
      keys.FillGuard();
      values.FillGuard();
      args.layer = kLayer;
      args.begin = 250;
      args.tokens = 10;
      args.keys = &keys.view;
      args.values = &values.view;
      args.positions = positions.data();
      args.token_ids = ids.data();
    }
    Tensor keys{{10, kKvHeads, kKeyDim}}, values{{10, kKvHeads, kValueDim}};
    Guarded<int64_t> positions{10};
    Guarded<int32_t> ids{10};
    mneme_memory_read_args args = MNEME_MEMORY_READ_ARGS_INIT;
  };
  struct ReadCase {
    const char* argument;
    std::function<void(Call&)> spoil;
    mneme_status status = MNEME_STATUS_INVALID_ARGUMENT;
  };
  std::vector<ReadCase> cases = {
      {"layer", [](Call& c) { c.args.layer = 4; }},
      {"layer", [](Call& c) { c.args.layer = kLeast32; }},
      {"args.keys", [](Call& c) { c.args.tokens = 9; }},
      {"args.tokens", [](Call& c) { c.args.tokens = -1; }, MNEME_STATUS_OUT_OF_RANGE},
      {"args.keys.shape", [](Call& c) { c.keys.view.shape = nullptr; }},
      {"args.keys.data", [](Call& c) { c.keys.view.data = nullptr; }},
      {"args.keys.dtype", [](Call& c) { c.keys.view.dtype = MNEME_DTYPE_F16; }},
      {"args.keys.dtype", [](Call& c) { c.keys.view.dtype = MNEME_DTYPE_I8; }},
      {"args.keys.ndim", [](Call& c) { c.keys.view.ndim = 2; }},
      {"args.keys", [](Call& c) { c.keys.shape[1] = 1; }},
      {"args.keys", [](Call& c) { c.keys.shape[2] = kKeyDim - 1; }},
      {"args.keys.strides[2]", [](Call& c) { c.keys.strides[2] = 2; }},
      {"args.keys.device_type", [](Call& c) { c.keys.view.device_type = MNEME_DEVICE_CUDA; },
       MNEME_STATUS_UNIMPLEMENTED},
      {"args.values.data", [](Call& c) { c.values.view.data = nullptr; }},
      {"args.values.dtype", [](Call& c) { c.values.view.dtype = MNEME_DTYPE_BF16; }},
      {"args.values", [](Call& c) { c.values.shape[0] = 9; }},
      {"args.values", [](Call& c) { c.values.shape[2] = kKeyDim; }},
      {"args.values.device_type", [](Call& c) { c.values.view.device_type = MNEME_DEVICE_CUDA; },
       MNEME_STATUS_UNIMPLEMENTED},
      {"begin", [](Call& c) { c.args.begin = -1; }, MNEME_STATUS_OUT_OF_RANGE},
      {"begin",
       [](Call& c) {
         c.args.begin = 301;
         c.args.layer = kOtherLayer;
       },
       MNEME_STATUS_OUT_OF_RANGE},
      {"begin", [](Call& c) { c.args.begin = kMost; }, MNEME_STATUS_OUT_OF_RANGE},
      {"begin", [](Call& c) { c.args.begin = kMost - 5; }, MNEME_STATUS_OUT_OF_RANGE},
      {"begin", [](Call& c) { c.args.begin = kLeast; }, MNEME_STATUS_OUT_OF_RANGE},
  };
  for (const int64_t tokens : {int64_t{-1}, kMost, kLeast, int64_t{1} << 40}) {
    cases.push_back({"tokens",
                     [=](Call& c) {
                       c.args.tokens = tokens;
                       c.args.keys = c.args.values = nullptr;
                     },
                     MNEME_STATUS_OUT_OF_RANGE});
  }
  for (size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(::testing::Message() << "case " << i << ": " << cases[i].argument);
    Call call;
    cases[i].spoil(call);
    ExpectRefused(mneme_memory_read(memory_, &call.args), cases[i].status, cases[i].argument);
    EXPECT_TRUE(call.keys.Guarded() && call.values.Guarded() && call.positions.Untouched() && call.ids.Untouched());
  }
  // Each output alone, and none.
  for (int which = 0; which < 5; ++which) {
    Call call;
    if (which != 0) call.args.keys = nullptr;
    if (which != 1) call.args.values = nullptr;
    if (which != 2) call.args.positions = nullptr;
    if (which != 3) call.args.token_ids = nullptr;
    EXPECT_OK(mneme_memory_read(memory_, &call.args));
    EXPECT_NE(call.keys.Guarded(), which == 0);
    EXPECT_NE(call.values.Guarded(), which == 1);
    EXPECT_NE(call.positions.Untouched(), which == 2);
    EXPECT_NE(call.ids.Untouched(), which == 3);
  }
}

TEST_F(MemoryArgsTest, ReadOfEvictedTokensWritesNothing) {
  mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
  options.pinned_tokens = 4;
  mneme_memory* const memory = NewMemory("pinned", &options);
  ASSERT_OK(AppendTokens(memory, kLayer, 20));
  ASSERT_OK(AppendTokens(memory, kOtherLayer, 20));
  ASSERT_OK(mneme_memory_evict(memory, 10));
  EXPECT_EQ(InfoOf(memory).first_kept, 14);
  for (const int64_t begin : {0, 4, 10}) {
    Tensor keys({8, kKvHeads, kKeyDim});
    keys.FillGuard();
    Guarded<int64_t> positions(8);
    mneme_memory_read_args read = MNEME_MEMORY_READ_ARGS_INIT;
    read.layer = kLayer;
    read.begin = begin;
    read.tokens = 8;
    read.keys = &keys.view;
    read.positions = positions.data();
    ExpectRefused(mneme_memory_read(memory, &read), MNEME_STATUS_OUT_OF_RANGE, "args.begin");
    EXPECT_THAT(mneme_last_error(), HasSubstr("evicted"));
    EXPECT_TRUE(keys.Guarded() && positions.Untouched()) << "from token " << begin;
  }
  EXPECT_OK(mneme_memory_close(memory));
}

TEST_F(MemoryArgsTest, NumbersOfTheShapingCallsAreChecked) {
  const std::string before = StateOf(memory_);
  auto* const untouched = reinterpret_cast<mneme_memory*>(uintptr_t{0x5a5a});
  mneme_memory* fork = untouched;
  for (const int64_t token : {int64_t{-1}, kTokens + 1, kMost, kLeast}) {
    SCOPED_TRACE(token);
    ExpectRefused(mneme_memory_truncate(memory_, token), MNEME_STATUS_OUT_OF_RANGE, "tokens");
    ExpectRefused(mneme_memory_fork(memory_, token, "fork", &fork), MNEME_STATUS_OUT_OF_RANGE, "at_token");
  }
  for (const int64_t keep : {int64_t{-1}, kLeast}) {
    ExpectRefused(mneme_memory_evict(memory_, keep), MNEME_STATUS_INVALID_ARGUMENT, "keep_tokens");
  }
  for (const int durability : {-1, 2, 1000}) {
    int64_t durable = 77;
    mneme_durability given;
    std::memcpy(&given, &durability, sizeof(given));
    ExpectRefused(mneme_memory_commit(memory_, given, &durable), MNEME_STATUS_INVALID_ARGUMENT, "durability");
    EXPECT_EQ(durable, 77);
  }
  ExpectRefused(mneme_memory_fork(memory_, 0, nullptr, &fork), MNEME_STATUS_INVALID_ARGUMENT, "new_name");
  ExpectRefused(mneme_memory_fork(memory_, 0, "", &fork), MNEME_STATUS_INVALID_ARGUMENT, "new_name");
  ExpectRefused(mneme_memory_fork(memory_, 0, std::string(256, 'n').c_str(), &fork), MNEME_STATUS_INVALID_ARGUMENT,
                "new_name");
  ExpectRefused(mneme_memory_fork(memory_, 0, "fork", nullptr), MNEME_STATUS_INVALID_ARGUMENT, "fork");
  ExpectRefused(mneme_memory_fork(memory_, 0, "m", &fork), MNEME_STATUS_ALREADY_EXISTS, "new_name");
  ExpectRefused(mneme_snapshot_create(memory_, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "snapshot");
  ExpectRefused(mneme_memory_get_info(memory_, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "info");
  EXPECT_EQ(fork, untouched);
  mneme_memory* none = nullptr;
  EXPECT_EQ(mneme_memory_open(store_, "fork", nullptr, &none), MNEME_STATUS_NOT_FOUND);
  EXPECT_TRUE(StateOf(memory_) == before);
  // More than there is to keep: nothing to evict.
  EXPECT_OK(mneme_memory_evict(memory_, kMost));
  EXPECT_EQ(InfoOf(memory_).tokens, kTokens);
}

TEST_F(MemoryArgsTest, CreateAndOpenRefuse) {
  auto* const untouched = reinterpret_cast<mneme_memory*>(uintptr_t{0x5a5a});
  mneme_memory* memory = untouched;
  const std::string longer(256, 'n');
  ExpectRefused(mneme_memory_create(store_, nullptr, card_, nullptr, &memory), MNEME_STATUS_INVALID_ARGUMENT, "name");
  ExpectRefused(mneme_memory_create(store_, "", card_, nullptr, &memory), MNEME_STATUS_INVALID_ARGUMENT, "name");
  ExpectRefused(mneme_memory_create(store_, longer.c_str(), card_, nullptr, &memory), MNEME_STATUS_INVALID_ARGUMENT,
                "name");
  ExpectRefused(mneme_memory_create(store_, "n", card_, nullptr, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "memory");
  ExpectRefused(mneme_memory_create(store_, "m", card_, nullptr, &memory), MNEME_STATUS_ALREADY_EXISTS, "name");
  ExpectRefused(mneme_memory_open(store_, nullptr, nullptr, &memory), MNEME_STATUS_INVALID_ARGUMENT, "name");
  ExpectRefused(mneme_memory_open(store_, "", nullptr, &memory), MNEME_STATUS_INVALID_ARGUMENT, "name");
  ExpectRefused(mneme_memory_open(store_, longer.c_str(), nullptr, &memory), MNEME_STATUS_INVALID_ARGUMENT, "name");
  ExpectRefused(mneme_memory_open(store_, "m", nullptr, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "memory");
  ExpectRefused(mneme_memory_open(store_, "none", nullptr, &memory), MNEME_STATUS_NOT_FOUND, "none");
  ExpectRefused(mneme_memory_drop(store_, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "name");
  ExpectRefused(mneme_memory_drop(store_, ""), MNEME_STATUS_INVALID_ARGUMENT, "name");
  ExpectRefused(mneme_memory_drop(store_, longer.c_str()), MNEME_STATUS_INVALID_ARGUMENT, "name");
  ExpectRefused(mneme_memory_drop(store_, "none"), MNEME_STATUS_NOT_FOUND, "none");
  ExpectRefused(mneme_memory_drop(store_, "m"), MNEME_STATUS_FAILED_PRECONDITION, "name");
  ExpectRefused(mneme_memory_drop_many(nullptr, nullptr, 0), MNEME_STATUS_INVALID_ARGUMENT, "store");
  ExpectRefused(mneme_memory_drop_many(store_, nullptr, 1), MNEME_STATUS_INVALID_ARGUMENT, "names");
  const char* const names[] = {"m", "none"};
  ExpectRefused(mneme_memory_drop_many(store_, names, 2), MNEME_STATUS_FAILED_PRECONDITION, "\"m\"");
  ExpectRefused(mneme_memory_drop_many(store_, names + 1, 1), MNEME_STATUS_NOT_FOUND, "none");
  EXPECT_OK(mneme_memory_drop_many(store_, nullptr, 0));

  struct OptionsCase {
    const char* argument;
    std::function<void(mneme_memory_options&)> spoil;
    mneme_status status = MNEME_STATUS_INVALID_ARGUMENT;
  };
  std::vector<OptionsCase> cases;
  for (const int32_t dtype : {5, 6, -1, kMost32}) {
    cases.push_back({"options.stored_dtype", [=](auto& o) { o.stored_dtype = dtype; }});
  }
  for (const int32_t flag : {-1, 2, kMost32}) {
    cases.push_back({"options.normalise_keys", [=](auto& o) { o.normalise_keys = flag; }});
    cases.push_back({"options.keys_rotated", [=](auto& o) { o.keys_rotated = flag; }});
  }
  for (const int64_t number : {int64_t{-1}, kLeast}) {
    cases.push_back({"options.max_tokens", [=](auto& o) { o.max_tokens = number; }});
    cases.push_back({"options.max_bytes", [=](auto& o) { o.max_bytes = number; }});
    cases.push_back({"options.pinned_tokens", [=](auto& o) { o.pinned_tokens = number; }});
    cases.push_back({"options.pinned_tokens", [=](auto& o) {
                       o.pinned_tokens = number;
                       o.max_bytes = 1 << 20;
                     }});
  }
  cases.push_back({"options.max_tokens", [](auto& o) { o.max_tokens = o.pinned_tokens = 5; }});
  cases.push_back({"options.max_tokens", [](auto& o) {
                     o.max_tokens = 5;
                     o.pinned_tokens = kMost;
                   }});
  cases.push_back({"options.max_bytes", [](auto& o) { o.max_bytes = 1; }});
  cases.push_back({"options.max_bytes", [](auto& o) {
                     o.max_bytes = 5000;
                     o.pinned_tokens = kMost;
                   }});
  for (const int64_t number :
       {int64_t{-256}, int64_t{1}, int64_t{255}, int64_t{257}, kMost, kLeast, kMost / 256 * 256}) {
    cases.push_back({"options.segment_tokens", [=](auto& o) { o.segment_tokens = number; }});
  }
  for (const OptionsCase& c : cases) {
    SCOPED_TRACE(c.argument);
    mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
    c.spoil(options);
    ExpectRefused(mneme_memory_create(store_, "new", card_, &options, &memory), c.status, c.argument);
  }
  for (const char* index :
       {"", "nonsense", "ivf,lists=", "ivf,lists=0", "ivf,lists=-3", "ivf,lists=99999999999999999999",
        "ivf,lists=4,lists=4", "hnsw,lists=4", "scan,", "faiss:", "faiss:Nonsense", "FLAT", "ivf;", "\xff"}) {
    SCOPED_TRACE(index);
    mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
    options.index = index;
    ExpectRefused(mneme_memory_create(store_, "new", card_, &options, &memory), MNEME_STATUS_INVALID_ARGUMENT,
                  "options.index");
  }
  mneme_memory_options gpu = MNEME_MEMORY_OPTIONS_INIT;
  gpu.index = "gpu-cagra";
  ExpectRefused(mneme_memory_create(store_, "new", card_, &gpu, &memory), MNEME_STATUS_UNIMPLEMENTED, "gpu-cagra");
  EXPECT_EQ(memory, untouched);
  EXPECT_EQ(mneme_memory_open(store_, "new", nullptr, &memory), MNEME_STATUS_NOT_FOUND);
}

TEST_F(MemoryArgsTest, ACardWithoutLayersMakesNoMemory) {
  mneme_card* card = nullptr;
  ASSERT_OK(mneme_card_create("m", "f", &card));
  mneme_memory* memory = nullptr;
  mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
  ExpectRefused(mneme_memory_create(store_, "new", card, &options, &memory), MNEME_STATUS_INVALID_ARGUMENT, "card");
  options.max_bytes = 1000;  // divided by the bytes of a token, of which there are none
  ExpectRefused(mneme_memory_create(store_, "new", card, &options, &memory), MNEME_STATUS_INVALID_ARGUMENT, "card");
  mneme_card_release(card);
}

TEST_F(MemoryArgsTest, ABoundInBytesIsOneInTokens) {
  mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
  options.stored_dtype = MNEME_DTYPE_F32;
  // Per token: two layers of 2 * (8 + 6) f32, a position and a token id.
  const int64_t token_bytes = 2 * 2 * (8 + 6) * 4 + 12;
  options.max_bytes = 10 * token_bytes + 5;
  mneme_memory* const memory = NewMemory("bound", &options);
  EXPECT_EQ(InfoOf(memory).max_tokens, 10);
  ASSERT_OK(AppendTokens(memory, kLayer, 25));
  ASSERT_OK(AppendTokens(memory, kOtherLayer, 25));
  EXPECT_EQ(InfoOf(memory).tokens, 10);
  EXPECT_EQ(InfoOf(memory).first_kept, 15);
  EXPECT_EQ(InfoOf(memory).bytes, 10 * token_bytes);
  EXPECT_OK(mneme_memory_close(memory));
}

TEST_F(MemoryArgsTest, AnEmptyMemoryAnswersWithNothing) {
  mneme_memory* const memory = NewMemory("empty");
  AttendCall attend(memory);
  attend.args.local_keys = attend.args.local_values = nullptr;
  ASSERT_OK(attend.Run());
  for (const float value : attend.output.data) EXPECT_EQ(value, 0.0f);
  for (int64_t i = 0; i < 2 * kQueryHeads; ++i) {
    EXPECT_EQ(attend.log_sum_exp.data()[i], -kInfinity);
    EXPECT_EQ(attend.memory_mass.data()[i], 0.0f);
  }
  for (int64_t i = 0; i < 2 * kQueryHeads * 3; ++i) {
    EXPECT_EQ(attend.retrieved_tokens.data()[i], -1);
    EXPECT_EQ(attend.retrieved_scores.data()[i], -kInfinity);
  }
  EXPECT_EQ(attend.statuses.data()[0], MNEME_OK);
  SearchCall search(memory);
  ASSERT_OK(search.Run());
  for (int64_t i = 0; i < 2 * kQueryHeads * 3; ++i) {
    EXPECT_EQ(search.tokens.data()[i], -1);
    EXPECT_EQ(search.scores.data()[i], -kInfinity);
  }
  for (const float value : search.keys.data) EXPECT_EQ(value, 0.0f);
  for (const float value : search.values.data) EXPECT_EQ(value, 0.0f);
  EXPECT_OK(mneme_memory_close(memory));
}

TEST_F(MemoryArgsTest, NoRowsAndMoreRowsThanThereAre) {
  // k = 0: the heads have no memory, so the result is the local one.
  AttendCall none(memory_), local(memory_);
  none.top_k.assign(4, 0);
  local.args.fusion = MNEME_FUSION_LOCAL_ONLY;
  ASSERT_OK(none.Run());
  ASSERT_OK(local.Run());
  EXPECT_EQ(none.output.data, local.output.data);
  for (int64_t i = 0; i < 2 * kQueryHeads * 3; ++i) EXPECT_EQ(none.retrieved_tokens.data()[i], -1);
  // k beyond the number of rows: all of them.
  mneme_memory* const memory = NewMemory("few");
  ASSERT_OK(AppendTokens(memory, kLayer, 2));
  SearchCall search(memory);
  ASSERT_OK(search.Run());
  for (int64_t i = 0; i < 2 * kQueryHeads; ++i) {
    EXPECT_EQ(search.tokens.data()[3 * i] + search.tokens.data()[3 * i + 1], 1);
    EXPECT_EQ(search.tokens.data()[3 * i + 2], -1);
    EXPECT_GE(search.scores.data()[3 * i], search.scores.data()[3 * i + 1]);
  }
  EXPECT_OK(mneme_memory_close(memory));
}

TEST_F(MemoryArgsTest, ABatchMayAskForAStatusPerSequence) {
  AttendCall call(memory_);
  call.memories = {memory_, nullptr};
  call.Batch(2);
  ASSERT_OK(call.Run());
  EXPECT_EQ(call.statuses.data()[0], MNEME_OK);
  EXPECT_EQ(call.statuses.data()[1], MNEME_OK);
}

TEST_F(MemoryArgsTest, MergeWorksInPlaceAndWithEmptyHalves) {
  MergeCall call, in_place;
  ASSERT_OK(call.Run());
  in_place.args.output = &in_place.a.view;
  in_place.args.log_sum_exp = in_place.a_lse.data();
  ASSERT_OK(in_place.Run());
  EXPECT_EQ(in_place.a.data, call.output.data);
  for (int64_t i = 0; i < 6; ++i) EXPECT_EQ(in_place.a_lse[static_cast<size_t>(i)], call.log_sum_exp.data()[i]);
  EXPECT_NEAR(call.log_sum_exp.data()[0], 2 + std::log1p(std::exp(-1.0)), 1e-6);

  MergeCall empty;
  empty.a_lse.assign(6, -kInfinity);
  ASSERT_OK(empty.Run());
  EXPECT_EQ(empty.output.data, empty.b.data);
  empty.b_lse.assign(6, -kInfinity);
  ASSERT_OK(empty.Run());
  for (int64_t i = 0; i < 6; ++i) EXPECT_EQ(empty.log_sum_exp.data()[i], -kInfinity);

  MergeCall gated;
  gated.args.gate = gated.gate.data();
  gated.args.a_log_sum_exp = gated.args.b_log_sum_exp = nullptr;
  gated.args.log_sum_exp = nullptr;
  ASSERT_OK(gated.Run());
  EXPECT_NEAR(gated.output.data[0], 0.5f * (gated.a.data[0] + gated.b.data[0]), 1e-6);
}

}  // namespace
}  // namespace mneme
