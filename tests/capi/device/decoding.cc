// SPDX-License-Identifier: Apache-2.0
#include "tests/capi/device/decoding.h"

#include <algorithm>

namespace mneme {
namespace {

constexpr int32_t kLayers[] = {3, 7};

const int64_t* OrNull(const std::vector<int64_t>& array) {
  return array.empty() ? nullptr : array.data();
}

}  // namespace

Decoding::Decoding(mneme_store* store, cuda::Runtime& runtime, void* stream, const DecodingRules& rules)
    : rules_(rules),
      runtime_(runtime),
      stream_(stream),
      bias_(8, rules.bias),
      decay_(8, rules.decay),
      gate_(8, rules.gate) {
  EXPECT_OK(mneme_graph_create(store, &graph_));
  for (int64_t i = 0; i <= rules.batch; ++i) {
    query_offsets_.push_back(i);
    local_offsets_.push_back(i * rules.local_rows);
  }
  for (size_t i = 0; i < 2; ++i) {
    Tensors& at = tensors_[i];
    DecodingStep::Layer shapes;
    Shape(shapes, i);
    at.query.Make(rules.type, shapes.query.shape);
    at.output.Make(rules.output, shapes.output.shape);
    at.on_query = std::make_unique<OnDevice>(runtime, stream, at.query);
    at.on_output = std::make_unique<OnDevice>(runtime, stream, at.output);
    if (rules.local_rows == 0) continue;
    at.keys.Make(rules.type, shapes.keys.shape);
    at.values.Make(rules.type, shapes.values.shape);
    at.on_keys = std::make_unique<OnDevice>(runtime, stream, at.keys, 8);
    at.on_values = std::make_unique<OnDevice>(runtime, stream, at.values);
  }
}

Decoding::~Decoding() {
  void* event = nullptr;
  EXPECT_EQ(runtime_.NewEvent(&event), "");
  EXPECT_EQ(runtime_.Record(event, stream_), "");
  EXPECT_EQ(runtime_.Synchronise(event), "");
  runtime_.DeleteEvent(event);
  mneme_graph_release(graph_);
}

void Decoding::Shape(DecodingStep::Layer& layer, size_t number) const {
  const int32_t n = kLayers[number];
  layer.query.Make(rules_.type, {rules_.batch, TwinTest::QueryHeads(n), TwinTest::KeyDim(n)});
  layer.output.Make(rules_.output, {rules_.batch, TwinTest::QueryHeads(n), TwinTest::ValueDim(n)});
  layer.expected.Make(rules_.output, layer.output.shape);
  if (rules_.local_rows == 0) return;
  layer.keys.Make(rules_.type, {rules_.batch * rules_.local_rows, TwinTest::KvHeads(n), TwinTest::KeyDim(n)});
  layer.values.Make(rules_.type, {rules_.batch * rules_.local_rows, TwinTest::KvHeads(n), TwinTest::ValueDim(n)});
}

mneme_attend_args Decoding::Args(size_t number) const {
  const Tensors& at = tensors_[number];
  mneme_attend_args args = MNEME_ATTEND_ARGS_INIT;
  args.layer = kLayers[number];
  args.query = &at.on_query->view;
  args.query_offsets = query_offsets_.data();
  if (rules_.local_rows > 0) {
    args.local_keys = &at.on_keys->view;
    args.local_values = &at.on_values->view;
    args.local_offsets = local_offsets_.data();
    args.local_mask = rules_.local_mask;
    args.mask_window = rules_.mask_window;
  }
  args.fusion = rules_.fusion;
  args.default_top_k = rules_.top_k;
  args.memory_bias = bias_.data();
  args.decay = decay_.data();
  args.decay_beyond = 20;
  args.gate = gate_.data();
  args.output = &at.on_output->view;
  args.stream = &call_stream_;
  args.graph = graph_;
  return args;
}

mneme_status Decoding::Capture(const std::vector<mneme_memory*>& memories) {
  HostGraph::BeginCapture(stream_);
  mneme_status status = MNEME_OK;
  for (size_t i = 0; i < 2 && status == MNEME_OK; ++i) {
    const mneme_attend_args args = Args(i);
    status = mneme_attend(memories.data(), memories.size(), &args);
  }
  host_graph_ = HostGraph::EndCapture(stream_);
  if (status != MNEME_OK) host_graph_.reset();
  return status;
}

void Decoding::Fill(DecodingStep& step, std::mt19937& random) const {
  for (size_t i = 0; i < 2; ++i) {
    DecodingStep::Layer& layer = step.layers[i];
    Shape(layer, i);
    layer.query.Fill(random);
    if (rules_.local_rows == 0) continue;
    layer.keys.Fill(random);
    layer.values.Fill(random);
  }
}

mneme_status Decoding::Update(const DecodingStep& step) {
  mneme_graph_update_args args = MNEME_GRAPH_UPDATE_ARGS_INIT;
  args.memory_begin = OrNull(step.begin);
  args.memory_end = OrNull(step.end);
  args.local_offsets = OrNull(step.local_offsets);
  args.query_positions = OrNull(step.positions);
  args.stream = &call_stream_;
  return mneme_graph_update(graph_, step.memories[0].data(), step.memories[0].size(), &args);
}

void Decoding::Replay(DecodingStep& step) {
  for (size_t i = 0; i < 2; ++i) {
    tensors_[i].on_query->Send(step.layers[i].query);
    if (rules_.local_rows == 0) continue;
    tensors_[i].on_keys->Send(step.layers[i].keys);
    tensors_[i].on_values->Send(step.layers[i].values);
  }
  host_graph_->Replay(stream_);
  for (size_t i = 0; i < 2; ++i) tensors_[i].on_output->Fetch(step.layers[i].output);
}

void Decoding::Expect(DecodingStep& step, bool blind) const {
  const std::vector<mneme_memory*>& memories = step.memories[1];
  const std::vector<int64_t> none(memories.size(), 0);
  for (size_t i = 0; i < 2; ++i) {
    DecodingStep::Layer& layer = step.layers[i];
    mneme_attend_args args = Args(i);
    args.graph = nullptr;
    args.stream = nullptr;
    args.query = &layer.query.view;
    args.output = &layer.expected.view;
    // Host tensors have exactly as many local rows as the offsets say.
    std::vector<int64_t> offsets = step.local_offsets.empty() ? local_offsets_ : step.local_offsets;
    mneme_tensor keys = layer.keys.view, values = layer.values.view;
    std::vector<int64_t> key_shape = layer.keys.shape, value_shape = layer.values.shape;
    if (rules_.local_rows > 0) {
      key_shape[0] = value_shape[0] = offsets.back();
      keys.shape = key_shape.data();
      values.shape = value_shape.data();
      args.local_keys = &keys;
      args.local_values = &values;
      args.local_offsets = offsets.data();
    }
    args.memory_begin = OrNull(step.begin);
    args.memory_end = blind ? none.data() : OrNull(step.end);
    args.query_positions = OrNull(step.positions);
    ASSERT_OK(mneme_attend(memories.data(), memories.size(), &args));
  }
}

void Decoding::Compare(const DecodingStep& step) const {
  const float bound = rules_.output == DType::kF32 ? 2e-5f : 1e-2f;
  for (const DecodingStep::Layer& layer : step.layers) {
    ExpectNear(layer.output.Floats(), layer.expected.Floats(), bound, "output");
  }
}

}  // namespace mneme
