// SPDX-License-Identifier: Apache-2.0
// Tensors that lie on the device, and streams.

#include <deque>
#include <functional>
#include <limits>

#include "tests/capi/device/emulated.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;

class TensorsTest : public DeviceTest {
 protected:
  void Create(const std::string& name, DType stored = DType::kF16, int64_t max_tokens = 0, int64_t pinned = 0) {
    mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
    options.stored_dtype = static_cast<int32_t>(stored) + MNEME_DTYPE_F32;
    options.max_tokens = max_tokens;
    options.pinned_tokens = pinned;
    options.segment_tokens = 256;
    DeviceTest::Create(name, options);
  }
};

TEST_F(TensorsTest, WithoutOutputsInHostMemoryTheHostDoesNotWait) {
  OpenStores();
  Create("m");
  Append("m", 100);
  for (int i = 0; i < 5; ++i) {
    Append("m", 1);
    TwinCall call;
    PlainCall(call, {"m"}, DType::kF16);
    call.on_device = true;
    call.host_outputs = false;
    ExpectSame(call);
    EXPECT_EQ(waited_, 0);
    call.host_outputs = true;
    ExpectSame(call);
    EXPECT_EQ(waited_, 1);
  }
  EXPECT_EQ(Stats().host_staged_calls, 0);
  EXPECT_EQ(Stats().device_searched_sequences, 10);
}

// Many calls run at once, while rows are appended, truncated, evicted and overwritten.
TEST_F(TensorsTest, RunningCallsReadTheRowsOfTheTimeOfTheCall) {
  OpenStores();
  Create("m", DType::kF16, 0, 3);
  Append("m", 200);
  struct Call {
    TwinCall call;
    TwinAnswer device, cpu;
    std::function<void(TwinAnswer&)> finish;
  };
  std::deque<Call> calls;
  for (int i = 0; i < 60; ++i) {
    Call& own = calls.emplace_back();
    PlainCall(own.call, {"m"}, DType::kF16);
    own.call.on_device = true;
    own.call.host_outputs = false;
    own.device = Attend(own.call, 0, &own.finish);
    own.cpu = Attend(own.call, 1);
    if (i % 3 == 0) Both("m", [&](mneme_memory* memory) { return mneme_memory_truncate(memory, NextToken("m") - 50); });
    if (i % 20 == 10) {
      Both("m", [&](mneme_memory* memory) { return mneme_memory_evict(memory, 100); });
    }
    Append("m", i % 30 == 17 ? 1200 : 17 + i % 3 * 17);
  }
  EXPECT_EQ(device_.Finish(), "");
  for (Call& own : calls) {
    own.finish(own.device);
    ExpectSame(own.device, own.cpu, DType::kF32);
    ASSERT_FALSE(HasFailure()) << "call " << &own - &calls.front();
  }
  EXPECT_EQ(Stats().host_staged_calls, 0);
}

TEST_F(TensorsTest, AppendCopiesDeviceTensorsAndRefusesNaN) {
  OpenStores();
  Create("m", DType::kF32);
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) AppendFromDevice("m", 7, type);
  for (const int32_t layer : {3, 7}) {
    std::vector<float> rows[2];
    for (int store = 0; store < 2; ++store) {
      AnyTensor keys(DType::kF32, {21, KvHeads(layer), KeyDim(layer)});
      AnyTensor values(DType::kF32, {21, KvHeads(layer), ValueDim(layer)});
      mneme_memory_read_args args = MNEME_MEMORY_READ_ARGS_INIT;
      args.layer = layer;
      args.tokens = 21;
      args.keys = &keys.view;
      args.values = &values.view;
      ASSERT_OK(mneme_memory_read(memories_.at("m")[static_cast<size_t>(store)], &args));
      rows[store] = keys.Floats();
      const std::vector<float> more = values.Floats();
      rows[store].insert(rows[store].end(), more.begin(), more.end());
    }
    EXPECT_EQ(rows[0], rows[1]);
  }
  AnyTensor keys(DType::kF32, {1, 2, 64}), values(DType::kF32, {1, 2, 128});
  reinterpret_cast<float*>(values.data.data())[200] = std::numeric_limits<float>::quiet_NaN();
  OnDevice device_keys(*runtime_, stream_, keys), device_values(*runtime_, stream_, values);
  mneme_memory_append_args args = MNEME_MEMORY_APPEND_ARGS_INIT;
  args.layer = 3;
  args.keys = &device_keys.view;
  args.values = &device_values.view;
  args.stream = &call_stream_;
  ExpectRefused(mneme_memory_append(memories_.at("m")[0], &args), MNEME_STATUS_INVALID_ARGUMENT, "values");
  EXPECT_EQ(NextToken("m"), 21);
  EXPECT_EQ(InfoOf(memories_.at("m")[0]).next_token, 21);
}

TEST_F(TensorsTest, ErrorsNameTheTensorThatCannotBeServed) {
  OpenStores();
  Create("m");
  Append("m", 20);
  TwinCall call;
  PlainCall(call, {"m"}, DType::kF16);
  AnyTensor output(DType::kF32, {1, 4, 128});
  OnDevice query(*runtime_, stream_, call.query), device_output(*runtime_, stream_, output);
  mneme_attend_args args = MNEME_ATTEND_ARGS_INIT;
  args.layer = 3;
  args.fusion = MNEME_FUSION_MEMORY_ONLY;
  args.query = &query.view;
  args.output = &device_output.view;
  args.stream = &call_stream_;
  mneme_memory* const with = memories_.at("m")[0];
  mneme_memory* const without = memories_.at("m")[1];
  EXPECT_OK(mneme_attend(&with, 1, &args));
  ExpectRefused(mneme_attend(&without, 1, &args), MNEME_STATUS_FAILED_PRECONDITION, "args.query.device_type");
  EXPECT_THAT(mneme_last_error(), HasSubstr("options.device_budget_bytes"));

  query.view.device_ordinal = 1;
  ExpectRefused(mneme_attend(&with, 1, &args), MNEME_STATUS_INVALID_ARGUMENT, "args.query.device_ordinal");
  query.view.device_ordinal = 0;
  query.view.dtype = MNEME_DTYPE_I8;
  ExpectRefused(mneme_attend(&with, 1, &args), MNEME_STATUS_INVALID_ARGUMENT, "args.query.dtype");
  query.view.dtype = MNEME_DTYPE_F16;
  device_.BeginCapture(stream_);
  ExpectRefused(mneme_attend(&with, 1, &args), MNEME_STATUS_FAILED_PRECONDITION, "args.stream");
  const auto graph = device_.EndCapture(stream_);
  ASSERT_TRUE(graph != nullptr);
  EXPECT_TRUE(graph->empty());

  mneme_search_args search = MNEME_SEARCH_ARGS_INIT;
  std::vector<int64_t> tokens(4 * 32);
  search.layer = 3;
  search.query = &query.view;
  search.tokens = tokens.data();
  ExpectRefused(mneme_search(&with, 1, &search), MNEME_STATUS_UNIMPLEMENTED, "args.query.device_type");

  args.query = &call.query.view;
  args.output = &output.view;
  ExpectRefused(mneme_attend(&with, 1, &args), MNEME_STATUS_INVALID_ARGUMENT, "args.stream");
  EXPECT_EQ(device_.Finish(), "") << "the tensors are freed";
}

// For every call of the device that fails: the call returns an error or the right result, and the next one succeeds.
TEST_F(TensorsTest, AFailureIsReportedAndTheNextCallIsRight) {
  OpenStores();
  Create("m");
  Append("m", 40);
  int64_t failing = 0, reported = 0;
  for (bool failed = true; failed; ++failing) {
    SCOPED_TRACE("call " + std::to_string(failing) + " of the device fails");
    TwinCall call;
    PlainCall(call, {"m"}, DType::kF16);
    AnyTensor output(DType::kF32, {1, 4, 128});
    const TwinAnswer expected = Attend(call, 1);
    {
      OnDevice query(*runtime_, stream_, call.query), device_output(*runtime_, stream_, output);
      mneme_attend_args args = MNEME_ATTEND_ARGS_INIT;
      args.layer = 3;
      args.fusion = MNEME_FUSION_MEMORY_ONLY;
      args.default_top_k = 8;
      args.query = &query.view;
      args.output = &device_output.view;
      args.stream = &call_stream_;
      const int64_t before = device_.calls();
      device_.FailCall(failing);
      const mneme_status status = mneme_attend(&memories_.at("m")[0], 1, &args);
      device_.FailCall(-1);
      failed = device_.calls() - before > failing;
      if (status != MNEME_OK) {
        ++reported;
        EXPECT_EQ(status, MNEME_STATUS_UNAVAILABLE);
        EXPECT_THAT(mneme_last_error(), HasSubstr("made to fail"));
        EXPECT_EQ(mneme_status_classify(status), MNEME_CLASS_TRANSIENT);
      }
      device_output.Fetch();
      ASSERT_EQ(device_.Finish(), "");
      if (status == MNEME_OK) {
        TwinAnswer actual = expected;
        actual.output = output.Floats();
        ExpectSame(actual, expected, DType::kF32);
      }
    }
    call.on_device = true;
    ExpectSame(call);
    ASSERT_FALSE(HasFailure());
  }
  EXPECT_GT(reported, 5);
}

}  // namespace
}  // namespace mneme
