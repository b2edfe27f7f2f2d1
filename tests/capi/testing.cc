// SPDX-License-Identifier: Apache-2.0
#include "tests/capi/testing.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>

namespace mneme {

using ::testing::HasSubstr;

void ExpectRefused(mneme_status status, mneme_status expected, const std::string& argument) {
  const std::string message = mneme_last_error();
  EXPECT_STREQ(mneme_status_name(status), mneme_status_name(expected)) << message;
  EXPECT_THAT(message, HasSubstr(argument));
  if (expected == MNEME_STATUS_INVALID_ARGUMENT || expected == MNEME_STATUS_OUT_OF_RANGE) {
    EXPECT_THAT(message, HasSubstr("expected"));
    EXPECT_THAT(message, HasSubstr("got "));
  }
}

pid_t SpawnThisTest(const std::string& argument) {
  const auto* const test = ::testing::UnitTest::GetInstance()->current_test_info();
  const std::string filter = std::string("--gtest_filter=") + test->test_suite_name() + "." + test->name();
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child != 0) return child;
  setenv("MNEME_TEST_CHILD", argument.c_str(), 1);
  execl("/proc/self/exe", "capi_tests", filter.c_str(), nullptr);
  _exit(127);
}

const char* ChildArgument() {
  return std::getenv("MNEME_TEST_CHILD");
}

size_t AddressSpace() {
  std::ifstream statm("/proc/self/statm");
  size_t pages = 0;
  statm >> pages;
  return pages * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

int WaitFor(pid_t child) {
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

Tensor::Tensor(std::vector<int64_t> extents) : shape(std::move(extents)), strides(shape.size(), 1) {
  int64_t n = 1;
  for (size_t i = shape.size(); i > 0; --i) {
    strides[i - 1] = n;
    n *= shape[i - 1];
  }
  data.resize(static_cast<size_t>(n));
  view = {data.data(),  MNEME_DTYPE_F32, MNEME_DEVICE_CPU, 0, static_cast<int32_t>(shape.size()),
          shape.data(), strides.data()};
}

void Tensor::Fill(uint32_t seed) {
  uint32_t state = seed * 2654435761u + 1;
  for (float& value : data) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(state >> 8) / static_cast<float>(1 << 24) - 0.5f;
  }
}

bool Tensor::Guarded() const {
  const auto* bytes = reinterpret_cast<const unsigned char*>(data.data());
  for (size_t i = 0; i < data.size() * sizeof(float); ++i) {
    if (bytes[i] != 0x5a) return false;
  }
  return true;
}

mneme_layer_desc LayerDesc(int32_t layer) {
  static constexpr float kFrequencies[] = {1.0f, 0.1f, 0.01f, 0.001f};
  mneme_layer_desc desc = MNEME_LAYER_DESC_INIT;
  desc.layer = layer;
  desc.q_heads = kQueryHeads;
  desc.kv_heads = kKvHeads;
  desc.key_dim = kKeyDim;
  desc.value_dim = kValueDim;
  desc.scale = 0.5f;
  desc.rotary_layout = MNEME_ROTARY_HALVES;
  desc.rotary_pairs = 4;
  desc.rotary_inverse_frequencies = kFrequencies;
  return desc;
}

mneme_card* NewCard(const char* model_name, int32_t value_dim) {
  mneme_card* card = nullptr;
  EXPECT_OK(mneme_card_create(model_name, "sha256:0", &card));
  for (const int32_t layer : {kLayer, kOtherLayer}) {
    mneme_layer_desc desc = LayerDesc(layer);
    desc.value_dim = value_dim;
    EXPECT_OK(mneme_card_add_layer(card, &desc));
  }
  return card;
}

mneme_status AppendTokens(mneme_memory* memory, int32_t layer, int64_t tokens, uint32_t seed) {
  return AppendTokens(memory, layer, tokens, kKvHeads, kKeyDim, kValueDim, seed);
}

mneme_status AppendTokens(mneme_memory* memory, int32_t layer, int64_t tokens, int64_t kv_heads, int64_t key_dim,
                          int64_t value_dim, uint32_t seed) {
  Tensor keys({tokens, kv_heads, key_dim}), values({tokens, kv_heads, value_dim});
  keys.Fill(seed);
  values.Fill(seed + 1);
  mneme_memory_append_args args = MNEME_MEMORY_APPEND_ARGS_INIT;
  args.layer = layer;
  args.keys = &keys.view;
  args.values = &values.view;
  return mneme_memory_append(memory, &args);
}

mneme_memory_info InfoOf(mneme_memory* memory) {
  mneme_memory_info info = MNEME_MEMORY_INFO_INIT;
  EXPECT_OK(mneme_memory_get_info(memory, &info));
  return info;
}

std::string StateOf(mneme_memory* memory) {
  mneme_memory_info info = InfoOf(memory);
  info.ram_bytes = 0;  // reading loads
  std::string state(reinterpret_cast<const char*>(&info), sizeof(info));
  const auto add = [&state](const auto& values) {
    state.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(values[0]));
  };
  for (const int32_t layer : {kLayer, kOtherLayer}) {
    const int64_t begin = std::max(info.pinned_tokens, info.first_kept);
    const int64_t n = info.next_token - begin;
    if (n <= 0) continue;
    Tensor keys({n, kKvHeads, kKeyDim}), values({n, kKvHeads, kValueDim});
    std::vector<int64_t> positions(static_cast<size_t>(n));
    std::vector<int32_t> ids(static_cast<size_t>(n));
    mneme_memory_read_args read = MNEME_MEMORY_READ_ARGS_INIT;
    read.layer = layer;
    read.begin = begin;
    read.tokens = n;
    read.keys = &keys.view;
    read.values = &values.view;
    read.positions = positions.data();
    read.token_ids = ids.data();
    EXPECT_OK(mneme_memory_read(memory, &read));
    add(keys.data);
    add(values.data);
    add(positions);
    add(ids);
  }
  return state;
}

CapiTest::CapiTest() {
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  EXPECT_OK(mneme_store_open(folder_.store().c_str(), &options, &store_));
  card_ = NewCard();
  mneme_memory_options memory_options = MNEME_MEMORY_OPTIONS_INIT;
  memory_options.stored_dtype = MNEME_DTYPE_F32;
  memory_options.segment_tokens = 256;
  memory_ = NewMemory("m", &memory_options);
  for (const int64_t n : {256, 44}) {
    EXPECT_OK(AppendTokens(memory_, kLayer, n, static_cast<uint32_t>(n)));
    EXPECT_OK(AppendTokens(memory_, kOtherLayer, n, static_cast<uint32_t>(n + 7)));
    EXPECT_OK(mneme_memory_commit(memory_, MNEME_DURABILITY_BUFFERED, nullptr));
  }
  EXPECT_OK(AppendTokens(memory_, kLayer, 10, 5));
  EXPECT_OK(AppendTokens(memory_, kOtherLayer, 7, 6));
}

CapiTest::~CapiTest() {
  EXPECT_OK(mneme_memory_close(memory_));
  mneme_card_release(card_);
  EXPECT_OK(mneme_store_close(store_));
}

mneme_memory* CapiTest::NewMemory(const std::string& name, const mneme_memory_options* options) {
  mneme_memory* memory = nullptr;
  EXPECT_OK(mneme_memory_create(store_, name.c_str(), card_, options, &memory));
  return memory;
}

}  // namespace mneme
