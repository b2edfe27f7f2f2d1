// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hosts/llamacpp/src/adapter.h"

namespace mneme::llama {
namespace {

using ::testing::HasSubstr;

constexpr int32_t kWindow = 512;

ModelShape Shape() {
  ModelShape shape;
  shape.layers.resize(2);
  return shape;
}

llama_context_params Params() {
  llama_context_params params = llama_context_default_params();
  params.n_ctx = 2 * kWindow;
  return params;
}

void ExpectRefused(const llama_context_params& params, const std::string& reason) {
  const Status status = CheckContextParams(params, Shape(), kWindow);
  EXPECT_EQ(status.code(), MNEME_STATUS_FAILED_PRECONDITION);
  EXPECT_THAT(status.message(), HasSubstr(reason));
}

TEST(ContextCheckTest, AcceptsDefaults) {
  EXPECT_TRUE(CheckContextParams(Params(), Shape(), kWindow).ok());
}

TEST(ContextCheckTest, RefusesASecondCallback) {
  llama_context_params params = Params();
  params.cb_eval = [](ggml_tensor*, bool, void*) { return true; };
  ExpectRefused(params, "cb_eval is set already");
}

TEST(ContextCheckTest, RefusesQuantisedCaches) {
  llama_context_params params = Params();
  params.type_k = GGML_TYPE_Q8_0;
  ExpectRefused(params, "type_k is q8_0");
  params = Params();
  params.type_v = GGML_TYPE_Q4_0;
  ExpectRefused(params, "Hadamard");
}

TEST(ContextCheckTest, RefusesOtherAttention) {
  llama_context_params params = Params();
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  ExpectRefused(params, "flash_attn_type");
  params = Params();
  params.attention_type = LLAMA_ATTENTION_TYPE_NON_CAUSAL;
  ExpectRefused(params, "non-causal");
}

TEST(ContextCheckTest, RefusesSplitCachesAndSmallOnes) {
  llama_context_params params = Params();
  params.n_seq_max = 2;
  params.kv_unified = false;
  ExpectRefused(params, "kv_unified");
  params = Params();
  params.n_ctx = 2 * kWindow - 1;
  ExpectRefused(params, "twice the window");
}

TEST(ContextCheckTest, RefusesOtherRotarySettings) {
  llama_context_params params = Params();
  params.rope_freq_base = 5e5f;
  ExpectRefused(params, "rope_freq_base");
  params = Params();
  params.rope_freq_scale = 0.5f;
  ExpectRefused(params, "rope_freq_scale");
  params = Params();
  params.rope_scaling_type = LLAMA_ROPE_SCALING_TYPE_YARN;
  ExpectRefused(params, "YaRN");
}

}  // namespace
}  // namespace mneme::llama
