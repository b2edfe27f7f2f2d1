// SPDX-License-Identifier: Apache-2.0
// Captured calls of mneme_attend: waits, allocations, row lifetimes, failures and refused arguments.

#include <functional>

#include "tests/capi/device/decoding.h"
#include "tests/capi/device/emulated.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class GraphTest : public DeviceTest {
 protected:
  std::vector<mneme_memory*> Memories(const std::string& name, size_t store = 0) const {
    return {memories_.at(name)[store]};
  }
  void Prepare(Decoding& decoding, const std::string& name, DecodingStep& step) {
    for (size_t store = 0; store < 2; ++store) step.memories[store] = Memories(name, store);
    decoding.Fill(step, random_);
  }
  void ExpectReplay(Decoding& decoding, DecodingStep& step) {
    decoding.Replay(step);
    ASSERT_EQ(device_.Finish(), "");
    decoding.Compare(step);
  }
};

TEST_F(GraphTest, ADecodingStepDoesNotWaitOrAllocate) {
  OpenStores();
  Create("m", Options(DType::kF16));
  DecodingRules rules;
  rules.local_rows = 4;
  rules.decay = 0.2f;
  {
    Decoding decoding(stores_[0], *runtime_, stream_, rules);
    ASSERT_OK(decoding.Capture(Memories("m")));
    int64_t allocations = 0, waits = 0;
    for (int i = 0; i < 45; ++i) {
      Append("m", 1);
      if (i == 5) allocations = device_.allocations();
      DecodingStep step;
      Prepare(decoding, "m", step);
      waits = device_.synchronised();
      ASSERT_OK(decoding.Update(step));
      EXPECT_EQ(device_.synchronised(), waits);
      decoding.Expect(step);
      ExpectReplay(decoding, step);
      ASSERT_FALSE(HasFailure()) << "step " << i;
    }
    EXPECT_EQ(device_.allocations(), allocations);
    EXPECT_EQ(device_.attends(), 2) << "captured once a layer";
    EXPECT_EQ(Stats().device_copied_rows, 2 * 45) << "each row of each layer once";
    EXPECT_EQ(Stats().host_staged_calls, 0);
  }
}

TEST_F(GraphTest, BeforeTheFirstUpdateNothingIsVisible) {
  OpenWith(20);
  DecodingRules rules;
  rules.local_rows = 4;
  Decoding decoding(stores_[0], *runtime_, stream_, rules);
  ASSERT_OK(decoding.Capture(Memories("m")));
  DecodingStep step;
  Prepare(decoding, "m", step);
  decoding.Expect(step, /*blind=*/true);
  ExpectReplay(decoding, step);
}

// Without an update a replay reads the same rows, whatever changes in the memory.
TEST_F(GraphTest, WithoutAnUpdateAReplayReadsTheSameRows) {
  OpenStores();
  const std::function<void()> changes[] = {
      [&] { Append("m", 30); },
      [&] {
        Both("m", [](mneme_memory* memory) { return mneme_memory_truncate(memory, 10); });
        Append("m", 40);
      },
      [&] { Both("m", [](mneme_memory* memory) { return mneme_memory_truncate(memory, 0); }); },
      [&] { Both("m", [](mneme_memory* memory) { return mneme_memory_evict(memory, 5); }); },
      [&] { Append("m", 1200); },
      [&] {  // and a call outside the graph reads the new rows
        Both("m", [](mneme_memory* memory) { return mneme_memory_truncate(memory, 10); });
        Append("m", 40);
        TwinCall call;
        PlainCall(call, {"m"}, DType::kF16);
        ExpectSame(call);
        EXPECT_EQ(Stats().device_fallback_sequences, 0);
      },
      [&] { Close("m"); },
  };
  for (const std::function<void()>& change : changes) {
    SCOPED_TRACE("change " + std::to_string(&change - changes));
    Create("m", Options(DType::kF16, 0, 2));
    Append("m", 60);
    {
      DecodingRules rules;
      rules.top_k = 50;
      Decoding decoding(stores_[0], *runtime_, stream_, rules);
      ASSERT_OK(decoding.Capture(Memories("m")));
      DecodingStep step;
      Prepare(decoding, "m", step);
      ASSERT_OK(decoding.Update(step));
      decoding.Expect(step);
      decoding.Replay(step);
      change();
      ExpectReplay(decoding, step);
      ASSERT_FALSE(HasFailure());
    }
    if (memories_.count("m") > 0) Close("m");
    for (mneme_store* const store : stores_) ASSERT_OK(mneme_memory_drop(store, "m"));
    EXPECT_EQ(device_.Finish(), "");
  }
  EXPECT_LT(Stats().device_bytes, 16 << 10) << "no rows are left, but the context of the call outside the graphs";
}

// Drafts that are rejected at each step take no more room than accepted ones.
TEST_F(GraphTest, RowsAfterATruncationReuseTheBlock) {
  OpenWith(40);
  Decoding decoding(stores_[0], *runtime_, stream_, {});
  ASSERT_OK(decoding.Capture(Memories("m")));
  int64_t allocations = 0;
  for (int i = 0; i < 30; ++i) {
    if (i == 5) allocations = device_.allocations();
    DecodingStep step;
    Prepare(decoding, "m", step);
    ASSERT_OK(decoding.Update(step));
    decoding.Expect(step);
    decoding.Replay(step);
    Both("m", [&](mneme_memory* memory) { return mneme_memory_truncate(memory, NextToken("m") - 5); });
    Append("m", 6);
    ASSERT_EQ(device_.Finish(), "");
    decoding.Compare(step);
    ASSERT_FALSE(HasFailure()) << "step " << i;
  }
  EXPECT_EQ(device_.allocations(), allocations);
}

TEST_F(GraphTest, TwoGraphsMayReadOneMemory) {
  OpenWith(50);
  void* other = nullptr;
  ASSERT_EQ(runtime_->NewStream(&other), "");
  {
    Decoding first(stores_[0], *runtime_, stream_, {}), second(stores_[0], *runtime_, other, {});
    for (Decoding* const decoding : {&first, &second}) ASSERT_OK(decoding->Capture(Memories("m")));
    for (int i = 0; i < 20; ++i) {
      DecodingStep one, two, again;
      Prepare(first, "m", one);
      ASSERT_OK(first.Update(one));
      first.Expect(one);
      first.Replay(one);
      Both("m", [&](mneme_memory* memory) { return mneme_memory_truncate(memory, NextToken("m") - 10); });
      Append("m", 12);
      Prepare(second, "m", two);
      ASSERT_OK(second.Update(two));
      second.Expect(two);
      second.Replay(two);
      first.Replay(one);
      ASSERT_EQ(device_.Finish(), "");
      first.Compare(one);
      second.Compare(two);
      ASSERT_FALSE(HasFailure()) << "step " << i;
    }
  }
  runtime_->DeleteStream(other);
}

TEST_F(GraphTest, AnUpdateWithoutRoomFailsAndHidesTheMemories) {
  // Rows have 2.3 MB. One takes 768 bytes in layer 3 and 384 in layer 7.
  OpenStores(int64_t{5} << 19);
  Create("first", Options(DType::kF16));
  Create("second", Options(DType::kF16));
  Append("first", 300);
  Append("second", 2360);
  DecodingRules rules;
  rules.local_rows = 4;
  Decoding decoding(stores_[0], *runtime_, stream_, rules);
  ASSERT_OK(decoding.Capture(Memories("first")));
  TwinCall call;
  PlainCall(call, {"second"}, DType::kF16);
  ExpectSame(call);
  ASSERT_EQ(Stats().device_searched_sequences, 1) << "layer 3 of the second memory takes the room";
  DecodingStep step;
  Prepare(decoding, "first", step);
  step.local_offsets = {0, 2};  // of the four that were captured; they hold after a failed update, too
  ExpectRefused(decoding.Update(step), MNEME_STATUS_RESOURCE_EXHAUSTED, "memories[0]");
  EXPECT_THAT(mneme_last_error(), HasSubstr("options.device_budget_bytes"));
  decoding.Expect(step, /*blind=*/true);
  ExpectReplay(decoding, step);
  Close("second");
  ASSERT_OK(decoding.Update(step));
  decoding.Expect(step);
  ExpectReplay(decoding, step);
  // A memory that outgrows the budget while its rows are held: the update drops the holds first.
  Append("first", 1400);
  ASSERT_OK(decoding.Update(step));
  decoding.Expect(step);
  ExpectReplay(decoding, step);
  ASSERT_LE(Stats().device_bytes, int64_t{5} << 19);
}

TEST_F(GraphTest, AGraphMayBeReleasedWhileItsUpdateRuns) {
  OpenWith(300);
  for (int i = 0; i < 20; ++i) {
    {
      DecodingRules rules;
      rules.local_rows = 4;
      Decoding decoding(stores_[0], *runtime_, stream_, rules);
      ASSERT_OK(decoding.Capture(Memories("m")));
      DecodingStep step;
      Prepare(decoding, "m", step);
      ASSERT_OK(decoding.Update(step));
      mneme_graph_release(decoding.graph());  // the second release, in the destructor, does nothing
    }
    ASSERT_EQ(device_.Finish(), "") << i;
  }
}

TEST_F(GraphTest, ARefusedCallNamesTheArgumentAndLeavesTheCaptureUnchanged) {
  OpenStores();
  Create("m", Options(DType::kF16));
  Create("bf16", Options(DType::kBF16));
  Create("f32", Options(DType::kF32));
  mneme_memory_options flat = Options(DType::kF16);
  flat.index = "flat";
  Create("flat", flat);
  DecodingRules rules;
  rules.local_rows = 4;
  Decoding decoding(stores_[0], *runtime_, stream_, rules), another(stores_[0], *runtime_, stream_, rules);
  float numbers[64] = {};
  int64_t tokens[64] = {};
  mneme_snapshot* snapshot = nullptr;
  ASSERT_OK(mneme_snapshot_create(memories_.at("m")[0], &snapshot));
  const mneme_snapshot* const snapshots[] = {snapshot};
  AnyTensor host_query(DType::kF16, {1, 4, 64}), wide_query(DType::kF32, {1, 4, 64}), output(DType::kF32, {1, 4, 128});
  AnyTensor long_keys(DType::kF16, {2, 4, 64}), long_output(DType::kF32, {2, 4, 128});
  OnDevice wide(*runtime_, stream_, wide_query), two(*runtime_, stream_, long_keys),
      two_outputs(*runtime_, stream_, long_output), spread(*runtime_, stream_, output, 4);
  const int64_t two_queries[] = {0, 2};
  int32_t statuses[1] = {-1};
  struct Row {
    const char* name;
    mneme_status status;
    std::function<void(mneme_attend_args&)> spoil;
    const char* memory = "m";
  };
  const Row rows[] = {
      {"args.stream", MNEME_STATUS_FAILED_PRECONDITION, [](auto& a) { a.graph = nullptr; }},
      {"args.graph", MNEME_STATUS_INVALID_ARGUMENT, [](auto& a) { a.graph = reinterpret_cast<mneme_graph*>(1234567); }},
      {"args.query.device_type", MNEME_STATUS_INVALID_ARGUMENT, [&](auto& a) { a.query = &host_query.view; }},
      {"args.output.device_type", MNEME_STATUS_INVALID_ARGUMENT, [&](auto& a) { a.output = &output.view; }},
      {"args.log_sum_exp", MNEME_STATUS_INVALID_ARGUMENT, [&](auto& a) { a.log_sum_exp = numbers; }},
      {"args.memory_mass", MNEME_STATUS_INVALID_ARGUMENT, [&](auto& a) { a.memory_mass = numbers; }},
      {"args.retrieved_tokens", MNEME_STATUS_INVALID_ARGUMENT,
       [&](auto& a) { a.retrieved_tokens = tokens, a.retrieved_stride = 8; }},
      {"args.retrieved_scores", MNEME_STATUS_INVALID_ARGUMENT,
       [&](auto& a) { a.retrieved_scores = numbers, a.retrieved_stride = 8; }},
      {"args.snapshots", MNEME_STATUS_INVALID_ARGUMENT, [&](auto& a) { a.snapshots = snapshots; }},
      {"args.memory_begin", MNEME_STATUS_INVALID_ARGUMENT, [&](auto& a) { a.memory_begin = tokens; }},
      {"args.memory_end", MNEME_STATUS_INVALID_ARGUMENT, [&](auto& a) { a.memory_end = tokens; }},
      {"args.query_positions", MNEME_STATUS_INVALID_ARGUMENT, [&](auto& a) { a.query_positions = tokens; }},
      {"args.mask_offsets", MNEME_STATUS_INVALID_ARGUMENT, [&](auto& a) { a.mask_offsets = tokens; }},
      {"args.query.dtype", MNEME_STATUS_UNIMPLEMENTED, [&](auto& a) { a.query = &wide.view; }},
      {"args.memory_query.dtype", MNEME_STATUS_UNIMPLEMENTED, [&](auto& a) { a.memory_query = &wide.view; }},
      {"args.output", MNEME_STATUS_UNIMPLEMENTED,
       [&](auto& a) {
         a.query = &two.view, a.query_offsets = two_queries;
         static int64_t shape[3] = {2, 4, 128}, strides[3] = {516, 128, 1};
         static mneme_tensor tensor;
         tensor = two_outputs.view;
         tensor.shape = shape, tensor.strides = strides;
         a.output = &tensor;
       }},
      {"args.position_policy", MNEME_STATUS_UNIMPLEMENTED,
       [](auto& a) { a.position_policy = MNEME_POSITION_FIXED_DISTANCE; }},
      {"args.normalise_query", MNEME_STATUS_UNIMPLEMENTED, [](auto& a) { a.normalise_query = 1; }},
      {"args.top_k", MNEME_STATUS_UNIMPLEMENTED, [](auto& a) { a.default_top_k = 257; }},
      {"args.local_mask", MNEME_STATUS_UNIMPLEMENTED,
       [](auto& a) {
         static const uint8_t bits[1] = {255};
         a.local_mask = MNEME_MASK_BITS, a.mask_bits = bits, a.mask_bits_stride = 1;
       }},
      {"args.query_offsets[1]", MNEME_STATUS_INVALID_ARGUMENT,
       [&](auto& a) { a.query = &two.view, a.output = &two_outputs.view, a.query_offsets = two_queries; }},
      {"memories[0]", MNEME_STATUS_INVALID_ARGUMENT, [](auto&) {}, "bf16"},
      {"memories[0]", MNEME_STATUS_UNIMPLEMENTED, [](auto&) {}, "f32"},
      {"memories[0]", MNEME_STATUS_UNIMPLEMENTED, [](auto&) {}, "flat"},
  };
  // One call is in the graph already.
  device_.BeginCapture(stream_);
  const mneme_attend_args good = decoding.FirstArgs();
  ASSERT_OK(mneme_attend(Memories("m").data(), 1, &good));
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    mneme_attend_args args = decoding.FirstArgs();
    row.spoil(args);
    EXPECT_EQ(mneme_attend(Memories(row.memory).data(), 1, &args), row.status);
    EXPECT_THAT(mneme_last_error(), StartsWith(row.name));
    EXPECT_THAT(mneme_last_error(), HasSubstr("expected"));
  }
  AnyTensor keys(DType::kF16, {1, 2, 64}), values(DType::kF16, {1, 2, 128});
  mneme_memory_append_args append = MNEME_MEMORY_APPEND_ARGS_INIT;
  append.layer = 3;
  append.stream = &call_stream_;
  mneme_tensor device_keys = two.view, device_values = two_outputs.view;
  device_keys.shape = keys.shape.data();
  device_values.shape = values.shape.data();
  device_values.dtype = MNEME_DTYPE_F16;
  device_keys.strides = device_values.strides = nullptr;
  append.keys = &device_keys;
  append.values = &device_values;
  ExpectRefused(mneme_memory_append(memories_.at("m")[0], &append), MNEME_STATUS_FAILED_PRECONDITION, "args.stream");
  mneme_graph_update_args update = MNEME_GRAPH_UPDATE_ARGS_INIT;
  update.stream = &call_stream_;
  ExpectRefused(mneme_graph_update(decoding.graph(), Memories("m").data(), 1, &update),
                MNEME_STATUS_FAILED_PRECONDITION, "args.stream");
  mneme_attend_args last = decoding.FirstArgs();
  last.statuses = statuses;
  EXPECT_OK(mneme_attend(Memories("m").data(), 1, &last));
  EXPECT_EQ(statuses[0], MNEME_OK);
  const auto graph = device_.EndCapture(stream_);
  ASSERT_TRUE(graph != nullptr) << "a refused call has broken the capture";
  EXPECT_EQ(graph->size(), 2u);
  ExpectRefused(mneme_attend(Memories("m").data(), 1, &good), MNEME_STATUS_FAILED_PRECONDITION, "args.graph");

  const auto refused = [&](mneme_status status, const char* name, const auto& spoil, const char* memory = "m",
                           size_t batch = 1) {
    SCOPED_TRACE(name);
    mneme_graph_update_args args = MNEME_GRAPH_UPDATE_ARGS_INIT;
    args.stream = &call_stream_;
    spoil(args);
    std::vector<mneme_memory*> memories(batch, memories_.at(memory)[0]);
    EXPECT_EQ(mneme_graph_update(decoding.graph(), memories.data(), batch, &args), status);
    EXPECT_THAT(mneme_last_error(), StartsWith(name));
  };
  const int64_t minus[] = {-1}, far[] = {int64_t{1} << 50}, beyond[] = {0, 5}, down[] = {1, 2};
  refused(MNEME_STATUS_INVALID_ARGUMENT, "args.memory_begin[0]", [&](auto& a) { a.memory_begin = minus; });
  refused(MNEME_STATUS_INVALID_ARGUMENT, "args.memory_end[0]", [&](auto& a) { a.memory_end = minus; });
  refused(MNEME_STATUS_INVALID_ARGUMENT, "args.query_positions[0]", [&](auto& a) { a.query_positions = far; });
  refused(MNEME_STATUS_INVALID_ARGUMENT, "args.local_offsets[1]", [&](auto& a) { a.local_offsets = beyond; });
  refused(MNEME_STATUS_INVALID_ARGUMENT, "args.local_offsets[0]", [&](auto& a) { a.local_offsets = down; });
  refused(
      MNEME_STATUS_INVALID_ARGUMENT, "batch", [](auto&) {}, "m", 2);
  refused(
      MNEME_STATUS_INVALID_ARGUMENT, "memories[0]", [](auto&) {}, "bf16");
  refused(
      MNEME_STATUS_UNIMPLEMENTED, "memories[0]", [](auto&) {}, "flat");
  ExpectRefused(mneme_graph_update(another.graph(), Memories("m").data(), 1, &update), MNEME_STATUS_FAILED_PRECONDITION,
                "graph");
  ExpectRefused(mneme_graph_update(decoding.graph(), Memories("m", 1).data(), 1, &update),
                MNEME_STATUS_INVALID_ARGUMENT, "memories[0]");
  ExpectRefused(mneme_graph_update(nullptr, Memories("m").data(), 1, &update), MNEME_STATUS_INVALID_ARGUMENT, "graph");
  EXPECT_OK(mneme_graph_update(decoding.graph(), Memories("m").data(), 1, &update));
  mneme_graph* none = nullptr;
  ExpectRefused(mneme_graph_create(stores_[1], &none), MNEME_STATUS_FAILED_PRECONDITION, "store");
  mneme_snapshot_release(snapshot);
  EXPECT_EQ(device_.Finish(), "");
}

TEST_F(GraphTest, AStoreWithGraphsCannotBeClosed) {
  OpenStores();
  mneme_graph* graph = nullptr;
  ASSERT_OK(mneme_graph_create(stores_[0], &graph));
  ExpectRefused(mneme_store_close(stores_[0]), MNEME_STATUS_FAILED_PRECONDITION, "mneme_graph_release");
  mneme_graph_release(graph);
  mneme_graph_release(graph);  // a stale handle is recognised
}

// For every call of the device that fails: the error says so, no device memory is used after it is freed, and the next
// step is right.
TEST_F(GraphTest, AFailureIsReportedAndTheNextStepIsRight) {
  int64_t reported = 0;
  for (const bool capturing : {true, false}) {
    int64_t failing = 0;
    for (bool failed = true; failed; failing += failing < 12 ? 1 : 3) {
      SCOPED_TRACE(std::string(capturing ? "capture" : "update") + ", call " + std::to_string(failing));
      OpenStores();
      Create("m", Options(DType::kF16));
      Append("m", 40);
      {
        DecodingRules rules;
        rules.local_rows = 4;
        Decoding decoding(stores_[0], *runtime_, stream_, rules);
        DecodingStep step;
        Prepare(decoding, "m", step);
        ASSERT_EQ(device_.Finish(), "");
        const int64_t calls = device_.calls();
        if (capturing) device_.FailCall(failing);
        mneme_status status = decoding.Capture(Memories("m"));
        if (!capturing) {
          ASSERT_OK(status);
          ASSERT_OK(decoding.Update(step));
          decoding.Expect(step);
          ExpectReplay(decoding, step);
          Both("m", [](mneme_memory* memory) { return mneme_memory_truncate(memory, 20); });
          Append("m", failing % 2 == 0 ? 10 : 1100);
          device_.FailCall(failing);
          const int64_t before = device_.calls();
          status = decoding.Update(step);
          failed = device_.calls() - before > failing;
        } else {
          failed = device_.calls() - calls > failing;
        }
        device_.FailCall(-1);
        if (failed && status != MNEME_OK) {
          ++reported;
          EXPECT_EQ(status, MNEME_STATUS_UNAVAILABLE);
          EXPECT_THAT(mneme_last_error(), HasSubstr("made to fail"));
        }
        if (capturing && status != MNEME_OK) {
          EXPECT_FALSE(decoding.ready());
        } else if (!capturing && status != MNEME_OK) {
          // A replay after the failed update sees no memory.
          decoding.Expect(step, /*blind=*/true);
          ExpectReplay(decoding, step);
        }
        Decoding after(stores_[0], *runtime_, stream_, rules);
        Decoding& next = decoding.ready() ? decoding : after;
        if (!decoding.ready()) {
          ASSERT_OK(after.Capture(Memories("m")));
        }
        ASSERT_OK(next.Update(step));
        next.Expect(step);
        ExpectReplay(next, step);
      }
      Close("m");
      for (mneme_store* const store : stores_) ASSERT_OK(mneme_memory_drop(store, "m"));
      CloseStores();
      ASSERT_FALSE(HasFailure());
    }
    EXPECT_GT(failing, 8);
  }
  EXPECT_GT(reported, 10);
}

}  // namespace
}  // namespace mneme
