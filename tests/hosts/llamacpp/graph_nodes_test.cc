// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/src/graph_nodes.h"

#include <memory>
#include <string>

#include "ggml-backend.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::llama {
namespace {

using ::testing::HasSubstr;

ModelShape ShapeWithMarks() {
  ModelShape shape;
  shape.layers.resize(3);
  for (int i = 0; i < 3; ++i) {
    const std::string number = std::to_string(i);
    LayerShape& layer = shape.layers[static_cast<size_t>(i)];
    layer.rotary.dims = i == 0 ? 0 : 8;
    layer.nodes.query = {"Qcur-" + number, GGML_OP_RESHAPE};
    layer.nodes.key = {"Kcur-" + number, GGML_OP_RESHAPE};
    layer.nodes.rotated_key = {"Kcur-" + number, i == 0 ? GGML_OP_RESHAPE : GGML_OP_ROPE};
    layer.nodes.value = {"Vcur-" + number, GGML_OP_RESHAPE};
    layer.nodes.output = {"kqv_out-" + number, GGML_OP_RESHAPE};
  }
  return shape;
}

NodeName Find(const NodeTable& table, const std::string& name, ggml_op op) {
  ggml_tensor node = {};
  ggml_set_name(&node, name.c_str());
  node.op = op;
  return table.Find(node);
}

void ExpectNode(const NodeTable& table, const std::string& name, ggml_op op, NodeKind kind, int32_t layer) {
  const NodeName found = Find(table, name, op);
  EXPECT_EQ(found.kind, kind) << name;
  if (kind != NodeKind::kNone) {
    EXPECT_EQ(found.layer, layer) << name;
  }
}

TEST(GraphNodesTest, FindsTheChosenLayersNodes) {
  const NodeTable table(ShapeWithMarks(), {0, 2}, /*rotated=*/false);
  ExpectNode(table, "Qcur-0", GGML_OP_RESHAPE, NodeKind::kQuery, 0);
  ExpectNode(table, "Kcur-2", GGML_OP_RESHAPE, NodeKind::kKey, 2);
  ExpectNode(table, "Kcur-2", GGML_OP_ROPE, NodeKind::kPositions, 2);
  ExpectNode(table, "Vcur-2", GGML_OP_RESHAPE, NodeKind::kValue, 2);
  ExpectNode(table, "kqv_out-2", GGML_OP_RESHAPE, NodeKind::kAttentionOut, 2);
  ExpectNode(table, "Kcur-1", GGML_OP_RESHAPE, NodeKind::kNone, 0);
  EXPECT_EQ(table.position_layer(), 2) << "layer 0 has no rotary embedding";
}

TEST(GraphNodesTest, MemoriesOfRotatedKeysTakeTheRotatedOnes) {
  const NodeTable table(ShapeWithMarks(), {0, 2}, /*rotated=*/true);
  ExpectNode(table, "Kcur-0", GGML_OP_RESHAPE, NodeKind::kKey, 0);
  ExpectNode(table, "Kcur-2", GGML_OP_ROPE, NodeKind::kKey, 2);
  ExpectNode(table, "Kcur-2", GGML_OP_RESHAPE, NodeKind::kNone, 0);
  ExpectNode(table, "Qcur-2", GGML_OP_RESHAPE, NodeKind::kNone, 0);
}

// With one head and one token the flat product has the shape of the rows by heads.
TEST(GraphNodesTest, OtherStagesAndOtherNamesAreNotRows) {
  const NodeTable table(ShapeWithMarks(), {0, 1, 2}, /*rotated=*/false);
  for (const ggml_op stage : {GGML_OP_MUL_MAT, GGML_OP_ADD, GGML_OP_MUL, GGML_OP_CLAMP, GGML_OP_VIEW}) {
    for (const char* name : {"Qcur-1", "Kcur-1", "Vcur-1"}) ExpectNode(table, name, stage, NodeKind::kNone, 0);
  }
  for (const char* name : {"Kcur-0 (view)", "Kcur-0 (reshaped)", "Kcur-", "Kcur-10", "xKcur-0", ""}) {
    ExpectNode(table, name, GGML_OP_RESHAPE, NodeKind::kNone, 0);
  }
}

// A graph like llama.cpp's for one layer, without its data.
class AttentionGraph {
 public:
  AttentionGraph() : context_(ggml_init({1 << 22, nullptr, /*no_alloc=*/true}), &ggml_free) {
    ggml_context* c = context_.get();
    positions = ggml_new_tensor_1d(c, GGML_TYPE_I32, kTokens);
    ggml_tensor* flat = ggml_new_tensor_3d(c, GGML_TYPE_F32, 8, 4, kTokens);
    rope = ggml_rope_ext(c, flat, positions, nullptr, 8, GGML_ROPE_TYPE_NORMAL, 0, 1e4f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f);
    scaled = ggml_scale(c, rope, 0.5f);
    keys = ggml_new_tensor_3d(c, GGML_TYPE_F16, 8, kCells, 2);
    values = ggml_new_tensor_3d(c, GGML_TYPE_F16, 8, kCells, 2);
    mask = ggml_new_tensor_2d(c, GGML_TYPE_F16, kCells, kTokens);
    Build(scaled);
    layer = {.q_heads = 4,
             .kv_heads = 2,
             .key_dim = 8,
             .value_dim = 8,
             .scale = 0.25f,
             .rotary = {.halves = false, .dims = 8}};
  }

  void Build(ggml_tensor* query) {
    attention = ggml_flash_attn_ext(context_.get(), ggml_permute(context_.get(), query, 0, 2, 1, 3), keys, values, mask,
                                    0.5f, 0.0f, 0.0f);
    output = ggml_reshape_2d(context_.get(), attention, 32, kTokens);
    if (buffer_ != nullptr) ggml_backend_buffer_free(buffer_);
    buffer_ = ggml_backend_alloc_ctx_tensors_from_buft(context_.get(), ggml_backend_cpu_buffer_type());
  }
  ~AttentionGraph() { ggml_backend_buffer_free(buffer_); }

  Status Find(AttentionInputs* inputs) const { return FindAttentionInputs(*output, layer, inputs); }
  void ExpectRefused(const std::string& reason) const {
    AttentionInputs inputs;
    const Status status = Find(&inputs);
    EXPECT_EQ(status.code(), MNEME_STATUS_FAILED_PRECONDITION);
    EXPECT_THAT(status.message(), HasSubstr(reason));
  }
  ggml_context* context() { return context_.get(); }

  static constexpr int64_t kTokens = 3;
  static constexpr int64_t kCells = 16;
  ggml_tensor *positions, *rope, *scaled, *keys, *values, *mask, *attention, *output;
  LayerShape layer;

 private:
  std::unique_ptr<ggml_context, decltype(&ggml_free)> context_;
  ggml_backend_buffer_t buffer_ = nullptr;
};

TEST(GraphNodesTest, FindsWhatStandsBehindAnOutput) {
  const AttentionGraph graph;
  AttentionInputs inputs;
  const Status status = graph.Find(&inputs);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(inputs.keys, graph.keys);
  EXPECT_EQ(inputs.values, graph.values);
  EXPECT_EQ(inputs.mask, graph.mask);
  const int32_t* positions = nullptr;
  ASSERT_TRUE(FindPositions(*graph.rope, &positions).ok());
  EXPECT_EQ(positions, graph.positions->data);
  EXPECT_FLOAT_EQ(inputs.scale, 0.5f);
  EXPECT_FLOAT_EQ(inputs.query_factor, 0.5f);
}

TEST(GraphNodesTest, RefusesSinksAsWeights) {
  AttentionGraph graph;
  graph.attention->src[4] = ggml_new_tensor_1d(graph.context(), GGML_TYPE_F32, 4);
  graph.ExpectRefused("sinks as weights");
}

TEST(GraphNodesTest, RefusesQueriesTurnedByAMatrix) {
  AttentionGraph graph;
  ggml_tensor* turn = ggml_new_tensor_2d(graph.context(), GGML_TYPE_F32, 8, 8);
  graph.attention->src[0] = ggml_permute(graph.context(), ggml_mul_mat(graph.context(), turn, graph.rope), 0, 2, 1, 3);
  graph.ExpectRefused("Hadamard");
}

TEST(GraphNodesTest, RefusesSettingsThatAreNotTheModels) {
  AttentionGraph graph;
  graph.layer.rotary.base = 5e5f;
  graph.ExpectRefused("rotary base");
  graph.layer.rotary.base = 1e4f;
  graph.layer.rotary.halves = true;
  graph.ExpectRefused("rotary mode");
  graph.layer.rotary.halves = false;
  graph.layer.scale = 1.0f;
  graph.ExpectRefused("attention scale");
  graph.layer.scale = 0.25f;
  graph.layer.soft_cap = 2.0f;
  graph.ExpectRefused("soft cap");
  graph.layer.soft_cap = 0.0f;
  graph.layer.rotary.dims = 0;
  graph.ExpectRefused("rotary embedding of which the adapter does not know");
  graph.layer.rotary.dims = 8;
  graph.layer.rotary.divisors = {1, 1, 1, 1};
  graph.ExpectRefused("rotary factors");
}

TEST(GraphNodesTest, RefusesAttentionWithoutFlash) {
  AttentionGraph graph;
  graph.attention->op = GGML_OP_CONT;
  graph.ExpectRefused("flash attention");
}

}  // namespace
}  // namespace mneme::llama
