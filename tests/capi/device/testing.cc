// SPDX-License-Identifier: Apache-2.0
#include "tests/capi/device/testing.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <utility>

namespace mneme {
namespace {

int64_t Between(std::mt19937& random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random);
}
bool Chance(std::mt19937& random, double p) {
  return std::bernoulli_distribution(p)(random);
}

}  // namespace

void ExpectNear(const std::vector<float>& actual, const std::vector<float>& expected, float bound, const char* what) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    if (actual[i] == expected[i]) continue;  // infinities
    ASSERT_NEAR(actual[i], expected[i], bound * (1 + std::fabs(expected[i]))) << what << " " << i;
  }
}

uint32_t TestSeed() {
  const char* const wish = std::getenv("MNEME_TEST_SEED");
  return wish == nullptr ? 1u : static_cast<uint32_t>(std::strtoul(wish, nullptr, 10));
}

AnyTensor::AnyTensor(DType dtype, std::vector<int64_t> extents) {
  Make(dtype, std::move(extents));
}

void AnyTensor::Make(DType dtype, std::vector<int64_t> extents) {
  shape = std::move(extents);
  view = {};
  view.dtype = static_cast<int32_t>(dtype) + MNEME_DTYPE_F32;
  view.device_type = MNEME_DEVICE_CPU;
  view.ndim = static_cast<int32_t>(shape.size());
  view.shape = shape.data();
  data.assign(static_cast<size_t>(std::max<int64_t>(1, count())) * DTypeSize(dtype), 0);
  view.data = data.data();
}

int64_t AnyTensor::count() const {
  int64_t n = 1;
  for (const int64_t extent : shape) n *= extent;
  return n;
}

void AnyTensor::Fill(std::mt19937& random) {
  std::vector<float> floats(static_cast<size_t>(count()));
  for (float& x : floats) x = std::ldexp(static_cast<float>(static_cast<int32_t>(random())), -30);  // -2 … 2
  ConvertFromF32(floats.data(), static_cast<DType>(view.dtype - MNEME_DTYPE_F32), data.data(), floats.size());
}

std::vector<float> AnyTensor::Floats() const {
  std::vector<float> floats(static_cast<size_t>(count()));
  ConvertToF32(static_cast<DType>(view.dtype - MNEME_DTYPE_F32), data.data(), floats.data(), floats.size());
  return floats;
}

OnDevice::OnDevice(cuda::Runtime& runtime, void* stream, AnyTensor& source, int64_t gap)
    : view(source.view), runtime_(runtime), stream_(stream), source_(source) {
  const int64_t row = source.shape[1] * source.shape[2] + gap;
  strides_ = {row, source.shape[2], 1};
  const auto each = static_cast<int64_t>(DTypeSize(static_cast<DType>(view.dtype - MNEME_DTYPE_F32)));
  EXPECT_EQ(runtime.Allocate(std::max<int64_t>(1, source.shape[0] * row * each), stream, &data_), "");
  view.data = data_;
  view.device_type = MNEME_DEVICE_CUDA;
  view.strides = strides_.data();
  Copy(source, true);
}

OnDevice::~OnDevice() {
  runtime_.Free(data_, stream_);
}

void OnDevice::Copy(AnyTensor& host, bool to_device) {
  const auto each = static_cast<int64_t>(DTypeSize(static_cast<DType>(view.dtype - MNEME_DTYPE_F32)));
  const int64_t bytes = source_.shape[1] * source_.shape[2] * each, pitch = strides_[0] * each;
  cuda::CopyShape shape = {host.data.data(), bytes, data_, pitch, bytes, source_.shape[0]};
  if (!to_device) shape = {data_, pitch, host.data.data(), bytes, bytes, source_.shape[0]};
  EXPECT_EQ(runtime_.Copy(shape, stream_), "");
}

TwinTest::TwinTest() : random_(TestSeed()) {
  EXPECT_OK(mneme_card_create("model", "weights", &card_));
  for (const int32_t number : {3, 7}) {
    mneme_layer_desc layer = MNEME_LAYER_DESC_INIT;
    layer.layer = number;
    layer.q_heads = static_cast<int32_t>(QueryHeads(number));
    layer.kv_heads = static_cast<int32_t>(KvHeads(number));
    layer.key_dim = static_cast<int32_t>(KeyDim(number));
    layer.value_dim = static_cast<int32_t>(ValueDim(number));
    layer.scale = 0.125f;
    layer.soft_cap = number == 7 ? 20.0f : 0.0f;
    EXPECT_OK(mneme_card_add_layer(card_, &layer));
  }
}

void TwinTest::SetUp() {
  if (cuda::DeviceCount() == 0) GTEST_SKIP() << "there is no CUDA device";
  ASSERT_EQ(cuda::OpenRuntime(0, &runtime_), "");
  ASSERT_EQ(runtime_->NewStream(&stream_), "");
  call_stream_.handle = stream_;
  ASSERT_EQ(runtime_->NewEvent(&event_), "");
}

TwinTest::~TwinTest() {
  CloseStores();
  mneme_card_release(card_);
  if (runtime_ == nullptr) return;
  runtime_->DeleteEvent(event_);
  runtime_->DeleteStream(stream_);
}

void TwinTest::Finish() {
  EXPECT_EQ(runtime_->Record(event_, stream_), "");
  EXPECT_EQ(runtime_->Synchronise(event_), "");
}

void TwinTest::OpenStores(int64_t budget_bytes) {
  for (int i = 0; i < 2; ++i) {
    mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
    if (i == 0) {
      options.device_budget_bytes = budget_bytes;
      options.log = [](void* context, mneme_log_level, const char* message) {
        static_cast<TwinTest*>(context)->log_.emplace_back(message);
      };
      options.log_context = this;
    }
    ASSERT_OK(mneme_store_open(folders_[i].store().c_str(), &options, &stores_[i]));
  }
}

void TwinTest::OpenWith(int64_t tokens) {
  OpenStores();
  Create("m", Options(DType::kF16));
  Append("m", tokens);
}

void TwinTest::CloseStores() {
  ReleaseSnapshots();
  while (!memories_.empty()) Close(memories_.begin()->first);
  for (mneme_store*& store : stores_) {
    EXPECT_OK(mneme_store_close(store));
    store = nullptr;
  }
}

void TwinTest::Create(const std::string& name, const mneme_memory_options& options) {
  std::vector<mneme_memory*>& both = memories_[name];
  both.resize(2);
  for (size_t i = 0; i < 2; ++i) ASSERT_OK(mneme_memory_create(stores_[i], name.c_str(), card_, &options, &both[i]));
}

void TwinTest::Open(const std::string& name) {
  std::vector<mneme_memory*>& both = memories_[name];
  both.resize(2);
  for (size_t i = 0; i < 2; ++i) ASSERT_OK(mneme_memory_open(stores_[i], name.c_str(), card_, &both[i]));
}

void TwinTest::Close(const std::string& name) {
  for (mneme_memory* const memory : memories_.at(name)) EXPECT_OK(mneme_memory_close(memory));
  memories_.erase(name);
}

void TwinTest::Both(const std::string& name, const std::function<mneme_status(mneme_memory*)>& call) {
  for (mneme_memory* const memory : memories_.at(name)) ASSERT_OK(call(memory));
}

void TwinTest::Append(const std::string& name, int64_t n, DType dtype) {
  for (const int32_t layer : {3, 7}) {
    AnyTensor keys(dtype, {n, KvHeads(layer), KeyDim(layer)}), values(dtype, {n, KvHeads(layer), ValueDim(layer)});
    keys.Fill(random_);
    values.Fill(random_);
    mneme_memory_append_args args = MNEME_MEMORY_APPEND_ARGS_INIT;
    args.layer = layer;
    args.keys = &keys.view;
    args.values = &values.view;
    Both(name, [&](mneme_memory* memory) { return mneme_memory_append(memory, &args); });
  }
}

void TwinTest::AppendFromDevice(const std::string& name, int64_t n, DType dtype) {
  for (const int32_t layer : {3, 7}) {
    AnyTensor keys(dtype, {n, KvHeads(layer), KeyDim(layer)}), values(dtype, {n, KvHeads(layer), ValueDim(layer)});
    keys.Fill(random_);
    values.Fill(random_);
    OnDevice device_keys(*runtime_, stream_, keys, 3), device_values(*runtime_, stream_, values);
    mneme_memory_append_args args = MNEME_MEMORY_APPEND_ARGS_INIT;
    args.layer = layer;
    args.keys = &device_keys.view;
    args.values = &device_values.view;
    args.stream = &call_stream_;
    ASSERT_OK(mneme_memory_append(memories_.at(name)[0], &args));
    args.keys = &keys.view;
    args.values = &values.view;
    args.stream = nullptr;
    ASSERT_OK(mneme_memory_append(memories_.at(name)[1], &args));
  }
}

void TwinTest::TakeSnapshots(const std::string& name) {
  std::vector<mneme_snapshot*>& both = snapshots_[name];
  for (mneme_snapshot* const old : both) mneme_snapshot_release(old);
  both.assign(2, nullptr);
  for (size_t i = 0; i < 2; ++i) ASSERT_OK(mneme_snapshot_create(memories_.at(name)[i], &both[i]));
}

void TwinTest::ReleaseSnapshots() {
  for (const auto& [name, both] : snapshots_) {
    for (mneme_snapshot* const snapshot : both) mneme_snapshot_release(snapshot);
  }
  snapshots_.clear();
}

void TwinTest::TruncateAnywhere(const std::string& name) {
  const auto tokens = static_cast<int64_t>(random_() % static_cast<uint64_t>(NextToken(name) + 1));
  Both(name, [&](mneme_memory* memory) { return mneme_memory_truncate(memory, tokens); });
}

void TwinTest::EvictSome(const std::string& name) {
  const mneme_memory_info info = InfoOf(memories_.at(name)[1]);
  const int64_t pinned = std::min(info.pinned_tokens, info.next_token);
  const int64_t keep = pinned + static_cast<int64_t>(random_() % static_cast<uint64_t>(info.tokens - pinned + 1));
  Both(name, [&](mneme_memory* memory) { return mneme_memory_evict(memory, keep); });
}

std::string TwinTest::ForkAnywhere(const std::string& name) {
  const auto at = static_cast<int64_t>(random_() % static_cast<uint64_t>(NextToken(name) + 1));
  const std::string child = "fork" + std::to_string(forks_++);
  std::vector<mneme_memory*> both(2);
  for (size_t i = 0; i < 2; ++i) EXPECT_OK(mneme_memory_fork(memories_.at(name)[i], at, child.c_str(), &both[i]));
  memories_[child] = both;
  return child;
}

int64_t TwinTest::NextToken(const std::string& name) {
  return InfoOf(memories_.at(name)[1]).next_token;
}

mneme_memory_options TwinTest::Options(DType stored, int64_t max_tokens, int64_t pinned_tokens) {
  mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
  options.stored_dtype = static_cast<int32_t>(stored) + MNEME_DTYPE_F32;
  options.max_tokens = max_tokens;
  options.pinned_tokens = pinned_tokens;
  options.segment_tokens = 256;
  return options;
}

void TwinTest::PlainCall(TwinCall& call, const std::vector<std::string>& names, DType dtype) {
  call.memories = names;
  call.query_offsets = {0};
  for (size_t i = 0; i < names.size(); ++i) call.query_offsets.push_back(call.query_offsets.back() + 1);
  call.query.Make(dtype, {call.query_offsets.back(), QueryHeads(call.layer), KeyDim(call.layer)});
  call.query.Fill(random_);
  call.args.default_top_k = 8;
  call.args.fusion = MNEME_FUSION_MEMORY_ONLY;
}

void TwinTest::PromptCall(TwinCall& call, const std::string& name, int64_t queries) {
  PlainCall(call, {name}, DType::kF16);
  call.query_offsets = {0, queries};
  call.query.Make(DType::kF16, {queries, QueryHeads(call.layer), KeyDim(call.layer)});
  call.query.Fill(random_);
  call.args.default_top_k = 256;
}

void TwinTest::RandomCall(TwinCall& call, const std::vector<std::string>& names, DType dtype) {
  call.layer = Chance(random_, 0.5) ? 3 : 7;
  const int64_t heads = QueryHeads(call.layer);
  const int64_t batch = Between(random_, 1, 3);
  call.query_offsets = {0};
  call.local_offsets = {0};
  const bool prefill = Chance(random_, 0.3);
  for (int64_t i = 0; i < batch; ++i) {
    call.memories.push_back(
        Chance(random_, 0.1) ? ""
                             : names[static_cast<size_t>(Between(random_, 0, static_cast<int64_t>(names.size()) - 1))]);
    call.query_offsets.push_back(call.query_offsets.back() + (prefill ? Between(random_, 0, 5) : 1));
    call.local_offsets.push_back(call.local_offsets.back() + Between(random_, 0, 20));
    const int64_t end = call.memories.back().empty() ? 0 : NextToken(call.memories.back());
    call.memory_end.push_back(Chance(random_, 0.6) ? end : Between(random_, 0, end + 5));
    call.memory_begin.push_back(Chance(random_, 0.7) ? 0 : Between(random_, 0, end));
  }
  if (std::all_of(call.memories.begin(), call.memories.end(), [](const auto& name) { return name.empty(); })) {
    call.memories[0] = names[0];
  }
  const int64_t tokens = call.query_offsets.back();
  call.query.Make(dtype, {tokens, heads, KeyDim(call.layer)});
  call.query.Fill(random_);
  if (Chance(random_, 0.6)) {
    const DType local = Chance(random_, 0.5) ? dtype : DType::kF32;
    call.local_keys.Make(local, {call.local_offsets.back(), KvHeads(call.layer), KeyDim(call.layer)});
    call.local_values.Make(local, {call.local_offsets.back(), KvHeads(call.layer), ValueDim(call.layer)});
    call.local_keys.Fill(random_);
    call.local_values.Fill(random_);
    call.args.local_mask = Chance(random_, 0.3)   ? MNEME_MASK_NONE
                           : Chance(random_, 0.5) ? MNEME_MASK_CAUSAL
                                                  : MNEME_MASK_SLIDING_WINDOW;
    call.args.mask_window = Between(random_, 1, 15);
  }
  for (int64_t head = 0; head < heads; ++head) {
    call.top_k.push_back(Chance(random_, 0.2) ? 0 : Between(random_, 1, 40));
    call.bias.push_back(std::normal_distribution<float>()(random_));
    call.decay.push_back(Chance(random_, 0.5) ? 0.0f : 0.3f);
    call.gate.push_back(std::normal_distribution<float>()(random_));
  }
  if (Chance(random_, 0.5)) call.top_k.clear();
  if (Chance(random_, 0.5)) call.decay.clear();
  call.args.decay_beyond = 20;
  if (Chance(random_, 0.3)) {
    for (int64_t i = 0; i < tokens; ++i) call.positions.push_back(Between(random_, 0, 2000));
  }
  call.args.fusion = static_cast<int32_t>(Between(random_, 0, 3));
  if (call.local_keys.shape.empty() && call.args.fusion == MNEME_FUSION_LOCAL_ONLY) call.args.fusion = 0;
  call.args.default_top_k = Between(random_, 1, 60);
  call.snapshots = Chance(random_, 0.3);
}

TwinAnswer TwinTest::Attend(TwinCall& call, int store) {
  std::function<void(TwinAnswer&)> finish;
  TwinAnswer answer = Attend(call, store, &finish);
  if (call.on_device && store == 0) Finish();
  finish(answer);
  return answer;
}

TwinAnswer TwinTest::Attend(TwinCall& call, int store, std::function<void(TwinAnswer&)>* finish) {
  const int64_t tokens = call.query.shape[0], heads = call.query.shape[1];
  const auto pairs = static_cast<size_t>(tokens * heads);
  TwinAnswer answer;
  answer.found.assign(pairs * 64, -7);
  answer.scores.assign(pairs * 64, 0.5f);
  answer.log_sum_exp.assign(pairs, 0.5f);
  answer.mass.assign(pairs, 0.5f);
  const auto output =
      std::make_shared<AnyTensor>(call.output_dtype, std::vector<int64_t>{tokens, heads, ValueDim(call.layer)});
  std::vector<mneme_memory*> memories;
  std::vector<const mneme_snapshot*> snapshots;
  const auto which = static_cast<size_t>(store);
  for (const std::string& name : call.memories) {
    memories.push_back(name.empty() ? nullptr : memories_.at(name)[which]);
    const auto taken = snapshots_.find(name);
    snapshots.push_back(call.snapshots && taken != snapshots_.end() ? taken->second[which] : nullptr);
  }
  mneme_attend_args args = call.args;
  const auto or_null = [](const auto& array) { return array.empty() ? nullptr : array.data(); };
  args.layer = call.layer;
  args.query = &call.query.view;
  args.query_offsets = call.query_offsets.data();
  args.query_positions = or_null(call.positions);
  if (!call.local_keys.shape.empty()) {
    args.local_keys = &call.local_keys.view;
    args.local_values = &call.local_values.view;
    args.local_offsets = call.local_offsets.data();
  }
  args.snapshots = snapshots.data();
  args.memory_begin = or_null(call.memory_begin);
  args.memory_end = or_null(call.memory_end);
  args.top_k = or_null(call.top_k);
  args.memory_bias = or_null(call.bias);
  args.decay = or_null(call.decay);
  args.gate = or_null(call.gate);
  args.output = &output->view;
  args.log_sum_exp = answer.log_sum_exp.data();
  args.retrieved_tokens = answer.found.data();
  args.retrieved_scores = answer.scores.data();
  args.retrieved_stride = 64;
  args.memory_mass = answer.mass.data();
  if (!call.host_outputs) {
    args.log_sum_exp = args.retrieved_scores = args.memory_mass = nullptr;
    args.retrieved_tokens = nullptr;
  }
  const bool on_device = call.on_device && store == 0;
  std::unique_ptr<OnDevice> query, local_keys, local_values, device_output;
  if (on_device) {
    const auto place = [&](std::unique_ptr<OnDevice>& at, const mneme_tensor** arg, AnyTensor& tensor, int64_t gap) {
      if (*arg == nullptr) return;
      at = std::make_unique<OnDevice>(*runtime_, stream_, tensor, gap);
      *arg = &at->view;
    };
    place(query, &args.query, call.query, 0);
    place(local_keys, &args.local_keys, call.local_keys, call.local_gap);
    place(local_values, &args.local_values, call.local_values, call.local_gap);
    place(device_output, &args.output, *output, 0);
    args.stream = call.has_stream ? &call_stream_ : nullptr;
    if (!call.has_stream) Finish();
  }
  const int64_t before = Waits();
  answer.status = mneme_attend(memories.data(), memories.size(), &args);
  if (store == 0) waited_ = Waits() - before;
  if (answer.status != MNEME_OK) answer.error = mneme_last_error();
  if (on_device) device_output->Fetch();
  *finish = [output](TwinAnswer& at) { at.output = output->Floats(); };
  return answer;
}

void TwinTest::ExpectSame(TwinCall& call) {
  ExpectSame(Attend(call, 0), Attend(call, 1), call.output_dtype);
}

void TwinTest::ExpectSame(const TwinAnswer& device, const TwinAnswer& cpu, DType output_dtype) {
  ASSERT_EQ(device.status, MNEME_OK) << device.error;
  ASSERT_EQ(cpu.status, MNEME_OK) << cpu.error;
  ASSERT_EQ(device.found.size(), cpu.found.size());
  for (size_t i = 0; i < cpu.found.size(); ++i) {
    if (device.found[i] == cpu.found[i]) continue;
    // Rows may change places if their scores differ by no more than the rounding of sums.
    ASSERT_TRUE(device.found[i] >= 0 && cpu.found[i] >= 0) << device.found[i] << " instead of " << cpu.found[i];
    ASSERT_NEAR(device.scores[i], cpu.scores[i], 1e-6f * (1 + std::fabs(cpu.scores[i])))
        << "rank " << i << ": row " << device.found[i] << " instead of " << cpu.found[i];
  }
  ExpectNear(device.scores, cpu.scores, 1e-5f, "score");
  ExpectNear(device.log_sum_exp, cpu.log_sum_exp, 1e-5f, "log-sum-exp");
  ExpectNear(device.output, cpu.output, output_dtype == DType::kF32 ? 2e-5f : 1e-2f, "output");
  ExpectNear(device.mass, cpu.mass, 1e-5f, "mass");
}

mneme_store_stats TwinTest::Stats(int store) {
  mneme_store_stats stats = MNEME_STORE_STATS_INIT;
  EXPECT_OK(mneme_store_get_stats(stores_[store], &stats));
  return stats;
}

}  // namespace mneme
