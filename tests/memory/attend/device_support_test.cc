// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/device_support.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "memory/attend/attend.h"

namespace mneme {
namespace {

// A request that the kernels support as a whole: two queries of four heads, two local rows of two.
class DeviceSupportTest : public ::testing::Test {
 protected:
  DeviceSupportTest() : request_(layer_) {
    request_.query = Tensor<RowTensor>(4);
    request_.retrieve.memory_query = request_.query;
    request_.output = Tensor<MutableRowTensor>(4);
    request_.local_keys = request_.local_values = Tensor<RowTensor>(2);
    request_.retrieve.heads = heads_;
    request_.retrieve.sequences = sequences_;
  }

  static LayerCard Layer() {
    LayerCard layer;
    layer.query_heads = 4;
    layer.kv_heads = 2;
    layer.key_dim = layer.value_dim = 64;
    return layer;
  }
  template <typename View>
  View Tensor(int64_t heads) {
    View tensor;
    tensor.data = data_;
    tensor.dtype = DType::kF16;
    tensor.rows = 2;
    tensor.heads = heads;
    tensor.dim = 64;
    tensor.row_stride = heads * 64;
    tensor.head_stride = 64;
    return tensor;
  }

  alignas(16) char data_[2 * 4 * 64 * 2] = {};
  const LayerCard layer_ = Layer();
  std::vector<HeadRule> heads_{4};
  std::vector<Sequence> sequences_{{.query_end = 2, .local_end = 2}};
  AttendRequest request_;
};

TEST_F(DeviceSupportTest, SupportsAPlainCall) {
  EXPECT_TRUE(CheckDeviceSupport(request_, DevicePart::kAll).supported());
  EXPECT_TRUE(CheckDeviceSupport(request_, DevicePart::kSearch).supported());
  EXPECT_EQ(GreatestTopK(request_), 32);
  EXPECT_TRUE(CallHasLocalRows(request_));
}

TEST_F(DeviceSupportTest, NamesWhatItDoesNotSupport) {
  struct Row {
    Argument argument;
    void (*spoil)(AttendRequest&);
    bool searches;  // whether the device can still search for the call
    std::string attribute = "";
  };
  const Row rows[] = {
      {Argument::kQuery, [](AttendRequest& r) { r.query.dtype = DType::kF32; }, true, "dtype"},
      {Argument::kQuery, [](AttendRequest& r) { r.query.row_stride += 8; }, true},
      {Argument::kMemoryQuery, [](AttendRequest& r) { r.retrieve.memory_query.dtype = DType::kF32; }, false, "dtype"},
      {Argument::kMemoryQuery, [](AttendRequest& r) { r.retrieve.memory_query.row_stride += 8; }, true},
      {Argument::kOutput, [](AttendRequest& r) { r.output.row_stride += 8; }, true},
      {Argument::kPositionPolicy, [](AttendRequest& r) { r.retrieve.policy = PositionPolicy::kClamped; }, false},
      {Argument::kNormaliseQuery, [](AttendRequest& r) { r.retrieve.normalise_query = true; }, false},
      {Argument::kLocalKeys, [](AttendRequest& r) { r.local_keys.dtype = DType::kBF16; }, true, "dtype"},
      {Argument::kLocalValues, [](AttendRequest& r) { r.local_values.row_stride += 4; }, true, "strides"},
      {Argument::kLocalMask, [](AttendRequest& r) { r.mask.kind = LocalMask::Kind::kBits; }, true},
  };
  const AttendRequest good = request_;
  for (const Row& row : rows) {
    AttendRequest request = good;
    row.spoil(request);
    const UnsupportedReason reason = CheckDeviceSupport(request, DevicePart::kAll);
    SCOPED_TRACE(ArgumentError(reason).message());
    EXPECT_EQ(reason.argument, row.argument);
    EXPECT_EQ(reason.attribute, row.attribute);
    EXPECT_EQ(reason.code, absl::StatusCode::kUnimplemented);
    EXPECT_FALSE(reason.expected.empty());
    EXPECT_EQ(CheckDeviceSupport(request, DevicePart::kSearch).supported(), row.searches);
  }
}

TEST_F(DeviceSupportTest, LimitsTopKAndCandidates) {
  heads_[2].top_k = 257;
  EXPECT_EQ(CheckDeviceSupport(request_, DevicePart::kAll).argument, Argument::kTopK);
  EXPECT_EQ(CheckDeviceSupport(request_, DevicePart::kSearch).argument, Argument::kTopK);
  heads_[2].top_k = 256;
  request_.query.rows = request_.retrieve.memory_query.rows = kMostRetrievedRows / (4 * 256) + 1;
  EXPECT_EQ(CheckDeviceSupport(request_, DevicePart::kAll).argument, Argument::kQuery);
  EXPECT_TRUE(CheckDeviceSupport(request_, DevicePart::kSearch).supported()) << "several launches serve it";
}

TEST_F(DeviceSupportTest, QueriesMustBeTheNewestLocalRows) {
  sequences_[0].mask_offset = 1;
  EXPECT_EQ(CheckDeviceSupport(request_, DevicePart::kAll).argument, Argument::kMaskOffsets);
  request_.mask.kind = LocalMask::Kind::kNone;
  EXPECT_TRUE(CheckDeviceSupport(request_, DevicePart::kAll).supported());
}

TEST_F(DeviceSupportTest, WithoutADeviceTheHostServes) {
  EXPECT_EQ(ChooseBackend(request_, {}), Backend::kHost);
  EXPECT_EQ(ChooseBackend(request_, {.all_on_device = true}), Backend::kDeviceFused);
  request_.retrieve.normalise_query = true;
  EXPECT_EQ(ChooseBackend(request_, {.all_on_device = true}), Backend::kHost);
}

}  // namespace
}  // namespace mneme
