// SPDX-License-Identifier: Apache-2.0
// Zero is the default of every field: structs of which only the size is set do what mneme.h promises.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

#include "tests/capi/calls.h"

namespace mneme {
namespace {

// What a binding that knows the size alone passes.
template <typename Struct>
Struct OnlySize() {
  Struct result;
  std::memset(&result, 0, sizeof(result));
  result.struct_size = sizeof(result);
  return result;
}

template <typename Struct>
void ExpectOnlySize(const Struct& init) {
  const Struct expected = OnlySize<Struct>();
  EXPECT_EQ(std::memcmp(&init, &expected, sizeof(init)), 0) << typeid(Struct).name();
}

TEST(InitTest, SetsTheSizeAlone) {
  ExpectOnlySize<mneme_layer_desc>(MNEME_LAYER_DESC_INIT);
  ExpectOnlySize<mneme_store_options>(MNEME_STORE_OPTIONS_INIT);
  ExpectOnlySize<mneme_store_verify_report>(MNEME_STORE_VERIFY_REPORT_INIT);
  ExpectOnlySize<mneme_backup_info>(MNEME_BACKUP_INFO_INIT);
  ExpectOnlySize<mneme_store_backup_args>(MNEME_STORE_BACKUP_ARGS_INIT);
  ExpectOnlySize<mneme_store_restore_args>(MNEME_STORE_RESTORE_ARGS_INIT);
  ExpectOnlySize<mneme_store_stats>(MNEME_STORE_STATS_INIT);
  ExpectOnlySize<mneme_memory_options>(MNEME_MEMORY_OPTIONS_INIT);
  ExpectOnlySize<mneme_memory_info>(MNEME_MEMORY_INFO_INIT);
  ExpectOnlySize<mneme_memory_append_args>(MNEME_MEMORY_APPEND_ARGS_INIT);
  ExpectOnlySize<mneme_memory_read_args>(MNEME_MEMORY_READ_ARGS_INIT);
  ExpectOnlySize<mneme_attend_args>(MNEME_ATTEND_ARGS_INIT);
  ExpectOnlySize<mneme_attend_backward_args>(MNEME_ATTEND_BACKWARD_ARGS_INIT);
  ExpectOnlySize<mneme_search_args>(MNEME_SEARCH_ARGS_INIT);
  ExpectOnlySize<mneme_graph_update_args>(MNEME_GRAPH_UPDATE_ARGS_INIT);
  ExpectOnlySize<mneme_merge_args>(MNEME_MERGE_ARGS_INIT);
}

TEST(InitTest, ATensorIsContiguousAndInHostMemory) {
  float data[6] = {};
  const int64_t shape[] = {1, 2, 3};
  const mneme_tensor tensor = mneme_tensor_contiguous(data, MNEME_DTYPE_F32, 3, shape);
  EXPECT_EQ(tensor.data, data);
  EXPECT_EQ(tensor.dtype, MNEME_DTYPE_F32);
  EXPECT_EQ(tensor.device_type, MNEME_DEVICE_CPU);
  EXPECT_EQ(tensor.device_ordinal, 0);
  EXPECT_EQ(tensor.ndim, 3);
  EXPECT_EQ(tensor.shape, shape);
  EXPECT_EQ(tensor.strides, nullptr);
}

class DefaultsTest : public CapiTest {
 protected:
  // Another store, opened by `options`.
  mneme_status Open(const mneme_store_options& options) {
    mneme_store* store = nullptr;
    const mneme_status status = mneme_store_open((folder_.path() + "/other").c_str(), &options, &store);
    EXPECT_OK(mneme_store_close(store));
    return status;
  }
};

TEST_F(DefaultsTest, AStoreIsCreatedUnlessItMustExist) {
  mneme_store_options options = OnlySize<mneme_store_options>();
  options.must_exist = 1;
  EXPECT_EQ(Open(options), MNEME_STATUS_NOT_FOUND);
  EXPECT_OK(Open(OnlySize<mneme_store_options>()));
  EXPECT_OK(Open(options));
}

TEST_F(DefaultsTest, AMemoryStoresF16WithoutBounds) {
  const mneme_memory_options options = OnlySize<mneme_memory_options>();
  for (const mneme_memory_options* given : {&options, static_cast<const mneme_memory_options*>(nullptr)}) {
    mneme_memory* const memory = NewMemory(given != nullptr ? "by size" : "by NULL", given);
    const mneme_memory_info info = InfoOf(memory);
    EXPECT_EQ(info.stored_dtype, MNEME_DTYPE_F16);
    EXPECT_EQ(info.normalise_keys, 0);
    EXPECT_EQ(info.keys_rotated, 0);
    EXPECT_EQ(info.max_tokens, 0);
    EXPECT_EQ(info.pinned_tokens, 0);
    EXPECT_EQ(info.segment_tokens, 4096);
    EXPECT_STREQ(info.index, "auto");
    EXPECT_OK(mneme_memory_close(memory));
  }
}

TEST_F(DefaultsTest, ALayerHasTheUsualScaleAndNoMagnitude) {
  mneme_layer_desc layer = OnlySize<mneme_layer_desc>();
  layer.layer = 5, layer.q_heads = 4, layer.kv_heads = 2, layer.key_dim = 8, layer.value_dim = 6;
  mneme_card *by_default = nullptr, *spelled_out = nullptr, *other = nullptr;
  ASSERT_OK(mneme_card_create("model", "f", &by_default));
  ASSERT_OK(mneme_card_create("model", "f", &spelled_out));
  ASSERT_OK(mneme_card_create("model", "f", &other));
  ASSERT_OK(mneme_card_add_layer(by_default, &layer));
  layer.scale = static_cast<float>(1 / std::sqrt(8.0));
  layer.rotary_magnitude = 1;
  ASSERT_OK(mneme_card_add_layer(spelled_out, &layer));
  layer.scale = 1;
  ASSERT_OK(mneme_card_add_layer(other, &layer));
  mneme_memory *memory = nullptr, *again = nullptr;
  ASSERT_OK(mneme_memory_create(store_, "new", by_default, nullptr, &memory));
  EXPECT_OK(mneme_memory_open(store_, "new", spelled_out, &again));
  EXPECT_EQ(mneme_memory_open(store_, "new", other, &again), MNEME_STATUS_FAILED_PRECONDITION);
  EXPECT_OK(mneme_memory_close(memory));
  EXPECT_OK(mneme_memory_close(memory));
  for (mneme_card* const card : {by_default, spelled_out, other}) mneme_card_release(card);
}

TEST_F(DefaultsTest, AttendRetrievesThirtyTwoRowsAsStored) {
  constexpr int64_t kRoom = 40;
  Tensor query({1, kQueryHeads, kKeyDim});
  query.Fill(3);
  const auto attend = [&](mneme_attend_args args) {
    Tensor output({1, kQueryHeads, kValueDim});
    std::vector<int64_t> tokens(kQueryHeads * kRoom, -2);
    args.layer = kLayer;
    args.query = &query.view;
    args.output = &output.view;
    args.retrieved_tokens = tokens.data();
    args.retrieved_stride = kRoom;
    EXPECT_OK(mneme_attend(&memory_, 1, &args));
    return std::pair(output.data, tokens);
  };
  mneme_attend_args args = OnlySize<mneme_attend_args>();
  const std::vector<float> decay(kQueryHeads, 0.1f);
  args.decay = decay.data();
  const auto by_default = attend(args);
  args.default_top_k = 32;
  args.decay_beyond = 1;
  args.position_policy = MNEME_POSITION_AS_STORED;
  args.fusion = MNEME_FUSION_JOINT;
  const auto spelled_out = attend(args);
  EXPECT_EQ(by_default, spelled_out);
  EXPECT_EQ(std::count_if(by_default.second.begin(), by_default.second.begin() + kRoom,
                          [](int64_t token) { return token >= 0; }),
            32);
}

TEST_F(DefaultsTest, SearchFindsThirtyTwoRows) {
  Tensor query({1, kQueryHeads, kKeyDim});
  query.Fill(3);
  const auto search = [&](mneme_search_args args) {
    std::vector<int64_t> tokens(kQueryHeads * 33, -2);
    args.layer = kLayer;
    args.query = &query.view;
    args.tokens = tokens.data();
    EXPECT_OK(mneme_search(&memory_, 1, &args));
    return tokens;
  };
  mneme_search_args args = OnlySize<mneme_search_args>();
  const std::vector<int64_t> by_default = search(args);
  args.top_k = 32;
  args.decay_beyond = 1;
  args.position_policy = MNEME_POSITION_AS_STORED;
  EXPECT_EQ(by_default, search(args));
  EXPECT_EQ(by_default[kQueryHeads * 32], -2) << "room for 32 rows a head is enough";
  EXPECT_EQ(std::count_if(by_default.begin(), by_default.end(), [](int64_t token) { return token >= 0; }),
            kQueryHeads * 32);
}

TEST_F(DefaultsTest, AppendReadMergeAndReportsNeedNoMore) {
  Tensor keys({1, kKvHeads, kKeyDim}), values({1, kKvHeads, kValueDim});
  keys.Fill(1);
  values.Fill(2);
  mneme_memory_append_args append = OnlySize<mneme_memory_append_args>();
  append.layer = kLayer;
  append.keys = &keys.view;
  append.values = &values.view;
  EXPECT_OK(mneme_memory_append(memory_, &append));
  mneme_memory_read_args read = OnlySize<mneme_memory_read_args>();
  read.layer = kLayer;
  EXPECT_OK(mneme_memory_read(memory_, &read)) << "no token";
  mneme_store_stats stats = OnlySize<mneme_store_stats>();
  EXPECT_OK(mneme_store_get_stats(store_, &stats));
  EXPECT_EQ(stats.memories, 1);
  mneme_store_verify_report report = OnlySize<mneme_store_verify_report>();
  EXPECT_OK(mneme_store_verify(store_, nullptr, nullptr, &report));
  EXPECT_EQ(report.memories, 1);
  mneme_merge_args merge = OnlySize<mneme_merge_args>();
  ExpectRefused(mneme_merge(&merge), MNEME_STATUS_INVALID_ARGUMENT, "args.a_output");
}

}  // namespace
}  // namespace mneme
