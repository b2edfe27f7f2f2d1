// SPDX-License-Identifier: Apache-2.0
// Every argument of mneme_attend, mneme_attend_backward, mneme_search and mneme_merge: absent, out of range, of another
// shape.

#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <type_traits>

#include "tests/capi/calls.h"

namespace mneme {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kMost = std::numeric_limits<int64_t>::max(), kLeast = std::numeric_limits<int64_t>::min();
constexpr int32_t kMost32 = std::numeric_limits<int32_t>::max(), kLeast32 = std::numeric_limits<int32_t>::min();

template <typename Call>
struct Case {
  const char* argument;
  std::function<void(Call&)> spoil;
  mneme_status status = MNEME_STATUS_INVALID_ARGUMENT;
};

class AttendArgsTest : public CapiTest {
 protected:
  // Runs every case on a fresh call; nothing may be written, and the memory stays as it is.
  template <typename Call>
  void Check(const std::vector<Case<Call>>& cases) {
    const std::string before = StateOf(memory_);
    for (size_t i = 0; i < cases.size(); ++i) {
      SCOPED_TRACE(::testing::Message() << "case " << i << ": " << cases[i].argument);
      Call call(memory_);
      cases[i].spoil(call);
      ExpectRefused(call.Run(), cases[i].status, cases[i].argument);
      EXPECT_TRUE(call.OutputsUntouched());
    }
    EXPECT_TRUE(StateOf(memory_) == before);
  }
};

// The ways to spoil a tensor that a call reads or writes. The rows of one tensor are the measure of the others'.
template <typename Call>
void AddTensorCases(const char* name, Tensor Call::*member, const mneme_tensor* Call::Args::*field, bool required,
                    bool measure, std::vector<Case<Call>>& cases) {
  const auto add = [&](const std::string& suffix, std::function<void(Tensor&)> spoil,
                       mneme_status status = MNEME_STATUS_INVALID_ARGUMENT) {
    static std::vector<std::unique_ptr<std::string>> names;
    names.push_back(std::make_unique<std::string>(name + suffix));
    cases.push_back({names.back()->c_str(), [=](Call& call) { spoil(call.*member); }, status});
  };
  if (required) {
    cases.push_back({name, [=](Call& call) { call.args.*field = nullptr; }});
  }
  add(".data", [](Tensor& t) { t.view.data = nullptr; });
  add(".data", [](Tensor& t) { t.view.data = reinterpret_cast<char*>(t.view.data) + 1; });
  for (const int32_t dtype : {int32_t{MNEME_DTYPE_I8}, 0, 5, 6, -1, kMost32, kLeast32}) {
    add(".dtype", [=](Tensor& t) { t.view.dtype = dtype; });
  }
  // Of these calls one takes device tensors, where its store has a device.
  const bool takes = std::is_same_v<Call, AttendCall>;
  add(
      ".device_type", [](Tensor& t) { t.view.device_type = MNEME_DEVICE_CUDA; },
      takes ? MNEME_STATUS_FAILED_PRECONDITION : MNEME_STATUS_UNIMPLEMENTED);
  for (const int32_t device : {0, 3, -1, kMost32}) {
    add(".device_type", [=](Tensor& t) { t.view.device_type = device; });
  }
  for (const int32_t ndim : {0, -1, 1, 2, 4, 9, kMost32, kLeast32}) {
    add(".ndim", [=](Tensor& t) {
      t.shape.resize(8, 1);
      t.strides.resize(8, 1);
      t.view.shape = t.shape.data();
      t.view.strides = t.strides.data();
      t.view.ndim = ndim;
    });
  }
  add(".shape", [](Tensor& t) { t.view.shape = nullptr; });
  for (size_t i = 0; i < 3; ++i) {
    const std::string place = ".shape[" + std::to_string(i) + "]";
    for (const int64_t extent : {int64_t{-1}, kMost, kLeast, (int64_t{1} << 44) + 1}) {
      add(place, [=](Tensor& t) { t.shape[i] = extent; });
    }
    if (i > 0 || !measure) add("", [=](Tensor& t) { ++t.shape[i]; });
  }
  add(".shape[1]", [](Tensor& t) { t.shape[0] = t.shape[1] = int64_t{1} << 40; });
  for (const int64_t stride : {kMost, kLeast, (int64_t{1} << 44) + 1}) {
    add(".strides[0]", [=](Tensor& t) { t.strides[0] = stride; });
    add(".strides[1]", [=](Tensor& t) { t.strides[1] = stride; });
    add(".strides[2]", [=](Tensor& t) { t.strides[2] = stride; });
  }
  add(".strides[2]", [](Tensor& t) { t.strides[2] = 2; });
  add(".strides[2]", [](Tensor& t) { t.strides[2] = 0; });
}

template <typename Call>
void AddNotFiniteCases(const char* name, Tensor Call::*member, std::vector<Case<Call>>& cases) {
  for (const float value : {kNaN, kInfinity, -kInfinity}) {
    for (const bool first : {false, true}) {
      cases.push_back({name, [=](Call& call) {
                         std::vector<float>& data = (call.*member).data;
                         (first ? data.front() : data.back()) = value;
                         // With statuses only the sequence would be refused.
                         if constexpr (std::is_same_v<Call, AttendCall>) call.args.statuses = nullptr;
                       }});
    }
  }
}

// Numbers of one head that are refused.
template <typename Call>
void AddHeadCases(const char* name, std::vector<float> Call::*member, std::initializer_list<float> refused,
                  std::vector<Case<Call>>& cases) {
  for (const float value : refused) {
    cases.push_back({name, [=](Call& call) { (call.*member)[2] = value; }});
  }
}

// What attend and search share.
template <typename Call>
std::vector<Case<Call>> SharedCases(mneme_memory* other) {
  std::vector<Case<Call>> cases;
  AddTensorCases("args.query", &Call::query, &Call::Args::query, true, true, cases);
  AddNotFiniteCases("args.query", &Call::query, cases);
  const auto add = [&](const char* name, std::function<void(Call&)> spoil,
                       mneme_status status = MNEME_STATUS_INVALID_ARGUMENT) {
    cases.push_back({name, spoil, status});
  };
  add("args", [](Call& c) { c.given = nullptr; });
  add("memories", [](Call& c) { c.memories_given = nullptr; });
  add("batch", [](Call& c) { c.batch = 0; });
  add("batch", [](Call& c) { c.batch = (size_t{1} << 20) + 1; });
  add("batch", [](Call& c) { c.batch = std::numeric_limits<size_t>::max(); });
  for (const int32_t layer : {0, 4, -1, kMost32, kLeast32}) {
    add("layer", [=](Call& c) { c.args.layer = layer; });
  }
  // Two sequences need offsets.
  add("memories[1]", [=](Call& c) {
    c.memories = {c.memories[0], other};
    c.Batch(2);
  });
  add("args.query_offsets", [](Call& c) {
    c.memories = {c.memories[0], nullptr};
    c.Batch(2);
    c.args.query_offsets = nullptr;
  });
  for (const std::vector<int64_t>& offsets :
       {std::vector<int64_t>{1, 2}, {-1, 2}, {0, 1}, {0, 3}, {0, kMost}, {0, kLeast}, {0, -1}, {kMost, kMost}}) {
    add("args.query_offsets", [=](Call& c) {
      c.query_offsets = offsets;
      c.args.query_offsets = c.query_offsets.data();
    });
  }
  for (const int64_t position : {kMost, kLeast, (int64_t{1} << 48) + 1}) {
    add("args.query_positions[1]", [=](Call& c) { c.query_positions[1] = position; });
    add("args.query_local_positions[0]", [=](Call& c) { c.query_local_positions[0] = position; });
  }
  add("args.query_local_positions", [](Call& c) {
    c.args.position_policy = MNEME_POSITION_WINDOW_START;
    c.args.query_local_positions = nullptr;
  });
  for (const int64_t token : {int64_t{-1}, kLeast}) {
    add("args.memory_begin[0]", [=](Call& c) { c.memory_begin[0] = token; });
    add("args.memory_end[0]", [=](Call& c) { c.memory_end[0] = token; });
  }
  for (const int32_t policy : {-1, 5, kMost32, kLeast32}) {
    add("args.position_policy", [=](Call& c) { c.args.position_policy = policy; });
  }
  for (const int32_t flag : {-1, 2, kMost32}) {
    add("args.normalise_query", [=](Call& c) { c.args.normalise_query = flag; });
  }
  AddHeadCases("args.distance[2]", &Call::distance, {kNaN, kInfinity, -kInfinity, 1e30f}, cases);
  AddHeadCases("args.decay[2]", &Call::decay, {kNaN, kInfinity, -1.0f}, cases);
  AddHeadCases("args.scale[2]", &Call::scale, {kNaN, kInfinity, 0.0f, -1.0f}, cases);
  for (const float value : {kNaN, kInfinity, -kInfinity, 1e30f}) {
    add("args.default_distance", [=](Call& c) { c.args.default_distance = value; });
  }
  for (const float value : {kNaN, kInfinity, 0.5f, -1.0f}) {
    add("args.decay_beyond", [=](Call& c) { c.args.decay_beyond = value; });
  }
  return cases;
}

std::vector<Case<AttendCall>> AttendCases(mneme_memory* other) {
  std::vector<Case<AttendCall>> cases = SharedCases<AttendCall>(other);
  using Call = AttendCall;
  AddTensorCases("args.memory_query", &Call::memory_query, &Call::Args::memory_query, false, false, cases);
  AddTensorCases("args.local_keys", &Call::local_keys, &Call::Args::local_keys, true, true, cases);
  AddTensorCases("args.local_values", &Call::local_values, &Call::Args::local_values, true, false, cases);
  AddTensorCases("args.output", &Call::output, &Call::Args::output, true, false, cases);
  AddNotFiniteCases("args.memory_query", &Call::memory_query, cases);
  const auto add = [&](const char* name, std::function<void(Call&)> spoil,
                       mneme_status status = MNEME_STATUS_INVALID_ARGUMENT) {
    cases.push_back({name, spoil, status});
  };
  add("args.local_offsets", [](Call& c) {
    c.memories = {c.memories[0], nullptr};
    c.Batch(2);
    c.args.local_offsets = nullptr;
  });
  for (const std::vector<int64_t>& offsets :
       {std::vector<int64_t>{1, 5}, {0, 4}, {0, 6}, {0, kMost}, {0, kLeast}, {-5, 5}}) {
    add("args.local_offsets", [=](Call& c) {
      c.local_offsets = offsets;
      c.args.local_offsets = c.local_offsets.data();
    });
  }
  for (const int32_t mask : {-1, 4, kMost32, kLeast32}) {
    add("args.local_mask", [=](Call& c) { c.args.local_mask = mask; });
  }
  for (const int64_t offset : {kMost, kLeast, (int64_t{1} << 48) + 1}) {
    add("args.mask_offsets[0]", [=](Call& c) { c.mask_offsets[0] = offset; });
  }
  for (const int64_t window : {int64_t{0}, int64_t{-1}, kLeast}) {
    add("args.mask_window", [=](Call& c) {
      c.args.local_mask = MNEME_MASK_SLIDING_WINDOW;
      c.args.mask_window = window;
    });
  }
  add("args.mask_bits", [](Call& c) {
    c.args.local_mask = MNEME_MASK_BITS;
    c.args.mask_bits = nullptr;
  });
  for (const int64_t stride : {int64_t{0}, int64_t{-1}, kLeast, kMost}) {
    add("args.mask_bits_stride", [=](Call& c) {
      c.args.local_mask = MNEME_MASK_BITS;
      c.args.mask_bits_stride = stride;
    });
  }
  for (const int32_t fusion : {-1, 4, kMost32, kLeast32}) {
    add("args.fusion", [=](Call& c) { c.args.fusion = fusion; });
  }
  for (const int64_t top_k : {int64_t{-1}, kLeast}) {
    add("args.top_k[2]", [=](Call& c) { c.top_k[2] = top_k; });
    add("args.default_top_k", [=](Call& c) { c.args.default_top_k = top_k; });
  }
  AddHeadCases("args.memory_bias[2]", &Call::memory_bias, {kNaN, kInfinity, -kInfinity}, cases);
  AddHeadCases("args.gate[2]", &Call::gate, {kNaN}, cases);
  for (const int64_t stride : {int64_t{0}, int64_t{-1}, kLeast, kMost}) {
    add("args.retrieved_stride", [=](Call& c) { c.args.retrieved_stride = stride; });
  }
  static const mneme_stream stream = {nullptr};
  add("args.stream", [](Call& c) { c.args.stream = &stream; });
  return cases;
}

TEST_F(AttendArgsTest, AttendRefuses) {
  mneme_card* const card = NewCard("model", 5);
  mneme_memory* other = nullptr;
  ASSERT_OK(mneme_memory_create(store_, "other", card, nullptr, &other));
  Check(AttendCases(other));
  EXPECT_OK(mneme_memory_close(other));
  mneme_card_release(card);
}

// Whatever mneme_attend refuses of its inputs, by the name that it has in args.attend.
TEST_F(AttendArgsTest, AttendBackwardRefusesWhatAttendRefuses) {
  mneme_card* const card = NewCard("model", 5);
  mneme_memory* other = nullptr;
  ASSERT_OK(mneme_memory_create(store_, "other", card, nullptr, &other));
  std::vector<std::string> names;
  const std::vector<Case<AttendCall>> of_attend = AttendCases(other);
  names.reserve(of_attend.size());
  std::vector<Case<AttendBackwardCall>> cases;
  for (const Case<AttendCall>& one : of_attend) {
    std::string name = one.argument;
    if (name == "args" || name.starts_with("args.output")) continue;
    if (name.starts_with("args.")) name.insert(5, "attend.");
    names.push_back(name);
    // Device tensors are refused wherever they lie.
    const bool device = one.status == MNEME_STATUS_FAILED_PRECONDITION;
    cases.push_back({names.back().c_str(), [&one](AttendBackwardCall& c) { one.spoil(c.forward); },
                     device ? MNEME_STATUS_UNIMPLEMENTED : one.status});
  }
  EXPECT_GT(cases.size(), 200u);
  Check(cases);
  EXPECT_OK(mneme_memory_close(other));
  mneme_card_release(card);
}

TEST_F(AttendArgsTest, AttendBackwardRefuses) {
  using Call = AttendBackwardCall;
  using Args = Call::Args;
  std::vector<Case<Call>> cases;
  AddTensorCases("args.output_gradient", &Call::output_gradient, &Args::output_gradient, true, false, cases);
  AddTensorCases("args.query_gradient", &Call::query_gradient, &Args::query_gradient, false, false, cases);
  AddTensorCases("args.memory_query_gradient", &Call::memory_query_gradient, &Args::memory_query_gradient, false, false,
                 cases);
  AddTensorCases("args.local_keys_gradient", &Call::local_keys_gradient, &Args::local_keys_gradient, false, false,
                 cases);
  AddTensorCases("args.local_values_gradient", &Call::local_values_gradient, &Args::local_values_gradient, false, false,
                 cases);
  const auto add = [&](const char* name, std::function<void(Call&)> spoil) { cases.push_back({name, spoil}); };
  add("args", [](Call& c) { c.given = nullptr; });
  add("args.attend", [](Call& c) { c.args.attend = nullptr; });
  add("args.attend.struct_size", [](Call& c) { c.forward.args.struct_size = 1; });
  add("args.attend.retrieved_tokens", [](Call& c) { c.forward.args.retrieved_tokens = nullptr; });
  add("args.attend.graph", [](Call& c) { c.forward.args.graph = reinterpret_cast<mneme_graph*>(8); });
  add("args.memory_query_gradient", [](Call& c) { c.forward.args.memory_query = nullptr; });
  add("args.local_keys_gradient", [](Call& c) { c.forward.args.local_keys = c.forward.args.local_values = nullptr; });
  add("args.local_values_gradient", [](Call& c) {
    c.forward.args.local_keys = c.forward.args.local_values = nullptr;
    c.args.local_keys_gradient = nullptr;
  });
  Check(cases);
}

TEST_F(AttendArgsTest, SearchRefuses) {
  mneme_card* const card = NewCard("model", 5);
  mneme_memory* other = nullptr;
  ASSERT_OK(mneme_memory_create(store_, "other", card, nullptr, &other));
  using Call = SearchCall;
  std::vector<Case<Call>> cases = SharedCases<Call>(other);
  const auto add = [&](const char* name, std::function<void(Call&)> spoil,
                       mneme_status status = MNEME_STATUS_INVALID_ARGUMENT) {
    cases.push_back({name, spoil, status});
  };
  for (const int64_t top_k : {int64_t{-1}, kLeast, kMost, (int64_t{1} << 32) + 1}) {
    add("args.top_k", [=](Call& c) { c.args.top_k = top_k; });
  }
  add("args.tokens", [](Call& c) { c.args.tokens = nullptr; });
  add("memories", [](Call& c) { c.memories[0] = nullptr; });
  for (const bool keys : {true, false}) {
    const auto name = [&](const char* field) {
      static std::vector<std::unique_ptr<std::string>> names;
      names.push_back(std::make_unique<std::string>((keys ? "args.keys" : "args.values") + std::string(field)));
      return names.back()->c_str();
    };
    const auto tensor = [keys](Call& c) -> Tensor& { return keys ? c.keys : c.values; };
    add(name(".data"), [=](Call& c) { tensor(c).view.data = nullptr; });
    add(name(".data"), [=](Call& c) { tensor(c).view.data = reinterpret_cast<char*>(tensor(c).view.data) + 2; });
    for (const int32_t dtype : {int32_t{MNEME_DTYPE_F16}, int32_t{MNEME_DTYPE_BF16}, 0, -1}) {
      add(name(".dtype"), [=](Call& c) { tensor(c).view.dtype = dtype; });
    }
    add(
        name(".device_type"), [=](Call& c) { tensor(c).view.device_type = MNEME_DEVICE_CUDA; },
        MNEME_STATUS_UNIMPLEMENTED);
    add(name(".device_type"), [=](Call& c) { tensor(c).view.device_type = 0; });
    add(name(".ndim"), [=](Call& c) { tensor(c).view.ndim = 0; });
    add(name(".ndim"), [=](Call& c) { tensor(c).view.ndim = 9; });
    add(name(".shape"), [=](Call& c) { tensor(c).view.shape = nullptr; });
    add(name(".shape[3]"), [=](Call& c) { tensor(c).shape[3] = -1; });
    add(name(".shape[0]"), [=](Call& c) { tensor(c).shape[0] = kMost; });
    add(name(".shape"), [=](Call& c) {
      ++tensor(c).shape[2];
      tensor(c).view.strides = nullptr;
    });
    add(name(".strides[3]"), [=](Call& c) { tensor(c).strides[3] = 2; });
    add(name(".strides[0]"), [=](Call& c) { tensor(c).strides[0] = kMost; });
  }
  Check(cases);
  EXPECT_OK(mneme_memory_close(other));
  mneme_card_release(card);
}

TEST_F(AttendArgsTest, EveryOptionalArgumentMayBeAbsent) {
  const std::function<void(AttendCall&)> absent[] = {
      [](auto& c) { c.args.memory_query = nullptr; },
      [](auto& c) { c.args.query_offsets = nullptr; },
      [](auto& c) { c.args.query_positions = nullptr; },
      [](auto& c) { c.args.query_local_positions = nullptr; },
      [](auto& c) { c.args.local_keys = c.args.local_values = nullptr; },
      [](auto& c) { c.args.local_offsets = nullptr; },
      [](auto& c) { c.args.mask_offsets = nullptr; },
      [](auto& c) { c.args.mask_bits = nullptr; },
      [](auto& c) { c.args.snapshots = nullptr; },
      [](auto& c) { c.args.memory_begin = nullptr; },
      [](auto& c) { c.args.memory_end = nullptr; },
      [](auto& c) { c.args.top_k = nullptr; },
      [](auto& c) { c.args.distance = nullptr; },
      [](auto& c) { c.args.memory_bias = nullptr; },
      [](auto& c) { c.args.decay = nullptr; },
      [](auto& c) { c.args.scale = nullptr; },
      [](auto& c) { c.args.gate = nullptr; },
      [](auto& c) { c.args.log_sum_exp = nullptr; },
      [](auto& c) { c.args.retrieved_tokens = nullptr; },
      [](auto& c) { c.args.retrieved_scores = nullptr; },
      [](auto& c) { c.args.memory_mass = nullptr; },
      [](auto& c) { c.args.statuses = nullptr; },
      [](auto& c) { c.memories[0] = nullptr; },
  };
  for (size_t i = 0; i < std::size(absent); ++i) {
    SCOPED_TRACE(i);
    AttendCall call(memory_);
    absent[i](call);
    EXPECT_OK(call.Run());
    for (const float value : call.output.data) ASSERT_TRUE(std::isfinite(value) && std::fabs(value) < 1);
  }
  const std::function<void(SearchCall&)> absent_in_search[] = {
      [](auto& c) { c.args.query_offsets = nullptr; },
      [](auto& c) { c.args.query_positions = nullptr; },
      [](auto& c) { c.args.query_local_positions = nullptr; },
      [](auto& c) { c.args.snapshots = nullptr; },
      [](auto& c) { c.args.memory_begin = nullptr; },
      [](auto& c) { c.args.memory_end = nullptr; },
      [](auto& c) { c.args.distance = nullptr; },
      [](auto& c) { c.args.decay = nullptr; },
      [](auto& c) { c.args.scale = nullptr; },
      [](auto& c) { c.args.scores = nullptr; },
      [](auto& c) { c.args.keys = nullptr; },
      [](auto& c) { c.args.values = nullptr; },
  };
  for (size_t i = 0; i < std::size(absent_in_search); ++i) {
    SCOPED_TRACE(i);
    SearchCall call(memory_);
    absent_in_search[i](call);
    EXPECT_OK(call.Run());
  }
}

TEST_F(AttendArgsTest, ExtremesThatMeanSomethingAreTaken) {
  const std::function<void(AttendCall&)> extremes[] = {
      [](auto& c) { c.top_k.assign(4, kMost); },
      [](auto& c) { c.memory_begin[0] = kMost; },
      [](auto& c) { c.memory_end[0] = kMost; },
      [](auto& c) {
        c.query_positions = {int64_t{1} << 48, int64_t{1} << 48};
      },
      [](auto& c) { c.mask_offsets[0] = int64_t{1} << 48; },
      [](auto& c) { c.mask_offsets[0] = -(int64_t{1} << 48); },
      [](auto& c) {
        c.gate = {kInfinity, -kInfinity, 0, 1e30f};
        c.args.fusion = MNEME_FUSION_GATED;
      },
      [](auto& c) {
        c.distance.assign(4, 1e14f);
        c.args.position_policy = MNEME_POSITION_CLAMPED;
      },
      [](auto& c) {
        c.distance.assign(4, -1e14f);
        c.args.position_policy = MNEME_POSITION_FIXED_DISTANCE;
      },
      [](auto& c) {
        c.args.local_mask = MNEME_MASK_SLIDING_WINDOW;
        c.args.mask_window = kMost;
        c.mask_offsets[0] = -(int64_t{1} << 48);
      },
  };
  for (size_t i = 0; i < std::size(extremes); ++i) {
    SCOPED_TRACE(i);
    AttendCall call(memory_);
    extremes[i](call);
    EXPECT_OK(call.Run());
    for (const float value : call.output.data) ASSERT_TRUE(std::isfinite(value) && std::fabs(value) < 1);
  }
}

TEST_F(AttendArgsTest, ASnapshotMustBeOfItsMemory) {
  mneme_memory* const other = NewMemory("other");
  mneme_snapshot* snapshot = nullptr;
  ASSERT_OK(mneme_snapshot_create(other, &snapshot));
  std::vector<Case<AttendCall>> cases;
  cases.push_back({"args.snapshots[0]", [&](auto& c) { c.snapshots[0] = snapshot; }});
  cases.push_back({"args.snapshots[0]", [&](auto& c) {
                     c.snapshots[0] = snapshot;
                     c.memories[0] = nullptr;
                   }});
  Check(cases);
  mneme_snapshot_release(snapshot);
  EXPECT_OK(mneme_memory_close(other));
}

TEST_F(AttendArgsTest, RotatedKeysCanOnlyBeUsedAsStored) {
  mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
  options.keys_rotated = 1;
  mneme_memory* const rotated = NewMemory("rotated", &options);
  ASSERT_OK(AppendTokens(rotated, kLayer, 5));
  for (const int32_t policy : {MNEME_POSITION_FIXED_DISTANCE, MNEME_POSITION_WINDOW_START, MNEME_POSITION_CLAMPED}) {
    AttendCall call(rotated);
    call.args.position_policy = policy;
    ExpectRefused(call.Run(), MNEME_STATUS_FAILED_PRECONDITION, "args.position_policy");
    EXPECT_TRUE(call.OutputsUntouched());
  }
  AttendCall call(rotated);
  EXPECT_OK(call.Run());
  EXPECT_OK(mneme_memory_close(rotated));
}

// A query that is not finite fails its sequence alone where statuses are given, and so it does in the backward pass.
TEST_F(AttendArgsTest, WithStatusesASequenceWithNaNFailsAlone) {
  const auto make = [&](AttendCall& call) {
    call.memories = {memory_, memory_};
    call.Batch(2);
    call.query_offsets = {0, 1, 2};
    call.local_offsets = {0, 2, 5};
  };
  constexpr size_t kOutputs = kQueryHeads * kValueDim;
  AttendCall sound(memory_);
  make(sound);
  ASSERT_OK(sound.Run());
  for (Tensor AttendCall::*const member : {&AttendCall::query, &AttendCall::memory_query}) {
    for (const size_t bad : {size_t{0}, size_t{1}}) {
      SCOPED_TRACE(bad);
      AttendCall call(memory_);
      make(call);
      (call.*member).data[bad * kQueryHeads * kKeyDim + 5] = kNaN;
      ASSERT_OK(call.Run());
      EXPECT_EQ(call.statuses.data()[bad], MNEME_STATUS_INVALID_ARGUMENT);
      EXPECT_EQ(call.statuses.data()[1 - bad], MNEME_OK);
      for (size_t i = 0; i < kOutputs; ++i) {
        ASSERT_EQ(call.output.data[bad * kOutputs + i], 0.0f);
        ASSERT_EQ(call.output.data[(1 - bad) * kOutputs + i], sound.output.data[(1 - bad) * kOutputs + i]);
      }
      for (size_t i = 0; i < kQueryHeads; ++i) {
        ASSERT_EQ(call.log_sum_exp.data()[bad * kQueryHeads + i], -kInfinity);
        ASSERT_EQ(call.retrieved_tokens.data()[(bad * kQueryHeads + i) * 3], -1);
      }
    }
  }
}

TEST_F(AttendArgsTest, MergeRefuses) {
  using Call = MergeCall;
  std::vector<Case<Call>> cases;
  AddTensorCases("args.a_output", &Call::a, &Call::Args::a_output, true, false, cases);
  AddTensorCases("args.b_output", &Call::b, &Call::Args::b_output, true, false, cases);
  AddTensorCases("args.output", &Call::output, &Call::Args::output, true, false, cases);
  // A greater a_output is the measure of the others.
  std::erase_if(cases, [](const Case<Call>& c) { return std::string(c.argument) == "args.a_output"; });
  cases.push_back({"args.a_output", [](Call& c) { c.args.a_output = nullptr; }});
  cases.push_back({"args.a_log_sum_exp", [](Call& c) { c.args.a_log_sum_exp = nullptr; }});
  cases.push_back({"args.b_log_sum_exp", [](Call& c) { c.args.b_log_sum_exp = nullptr; }});
  cases.push_back({"args.gate[1]", [](Call& c) {
                     c.gate[1] = kNaN;
                     c.args.gate = c.gate.data();
                   }});
  for (const float value : {kNaN, kInfinity}) {
    cases.push_back({"args.a_log_sum_exp[5]", [=](Call& c) { c.a_lse[5] = value; }});
    cases.push_back({"args.b_log_sum_exp[0]", [=](Call& c) { c.b_lse[0] = value; }});
  }
  cases.push_back({"args", [](Call& c) { c.given = nullptr; }});
  Check(cases);
}

}  // namespace
}  // namespace mneme
