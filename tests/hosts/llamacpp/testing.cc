// SPDX-License-Identifier: Apache-2.0
#include "tests/hosts/llamacpp/testing.h"

#include <algorithm>
#include <cmath>

#include "gtest/gtest.h"
#include "hosts/llamacpp/main/text.h"

namespace mneme::llama {

std::string SmolPath() {
  return MNEME_TEST_MODELS "/SmolLM2-135M-Instruct.Q4_1.gguf";
}
std::string GemmaPath() {
  return MNEME_TEST_MODELS "/gemma-3-270m-q4_k_m.gguf";
}

llama_model* Smol() {
  static llama_model* model = LoadModel(SmolPath()).release();
  return model;
}

llama_model* Gemma() {
  static llama_model* model = LoadModel(GemmaPath()).release();
  return model;
}

Dequantised::Dequantised(const std::string& path) {
  llama_model_quantize_params params = llama_model_quantize_default_params();
  params.ftype = LLAMA_FTYPE_ALL_F32;
  params.allow_requantize = true;
  // The first and the last product: large, and nothing comes after them that could grow.
  params.token_embedding_type = GGML_TYPE_Q8_0;
  params.output_tensor_type = GGML_TYPE_Q8_0;
  params.nthread = 2;
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  EXPECT_EQ(llama_model_quantize(path.c_str(), path_.c_str(), &params), 0u);
  model_ = LoadModel(path_);
}

ModelSettings SettingsFor(const std::string& path) {
  ModelSettings settings;
  settings.model = path;
  settings.threads = 2;
  return settings;
}

std::vector<llama_token> TextTokens(const llama_model* model, int64_t begin, int64_t count) {
  TextSettings text;
  text.files = {MNEME_TEST_TEXT};
  text.bytes = 100'000;
  std::vector<llama_token> tokens = ReadText(model, text);
  EXPECT_GE(static_cast<int64_t>(tokens.size()), begin + count);
  const bool begins = llama_vocab_get_add_bos(llama_model_get_vocab(model));
  std::vector<llama_token> result(tokens.begin() + begin, tokens.begin() + begin + count);
  if (begins) result.front() = tokens.front();
  return result;
}

void Distance::Add(std::span<const float> expected, std::span<const float> actual, llama_token next) {
  const auto normaliser = [](std::span<const float> logits) {
    const float largest = *std::max_element(logits.begin(), logits.end());
    double sum = 0.0;
    for (const float logit : logits) sum += std::exp(logit - largest);
    return largest + std::log(sum);
  };
  const double expected_sum = normaliser(expected);
  const double actual_sum = normaliser(actual);
  for (size_t i = 0; i < expected.size(); ++i) {
    const double log_probability = expected[i] - expected_sum;
    if (log_probability < -30.0) continue;
    divergence += std::exp(log_probability) * (log_probability - (actual[i] - actual_sum));
  }
  same_argmax += std::max_element(expected.begin(), expected.end()) - expected.begin() ==
                 std::max_element(actual.begin(), actual.end()) - actual.begin();
  const auto token = static_cast<size_t>(next);
  nll_difference += (actual_sum - actual[token]) - (expected_sum - expected[token]);
  ++positions;
}

void Batch::Add(llama_token token, llama_seq_id sequence, bool logits) {
  tokens_.push_back(token);
  sequences_.push_back(sequence);
  counts_.push_back(1);
  logits_.push_back(logits ? 1 : 0);
}

llama_batch Batch::get() {
  pointers_.clear();
  for (llama_seq_id& sequence : sequences_) pointers_.push_back(&sequence);
  return {static_cast<int32_t>(tokens_.size()),
          tokens_.data(),
          nullptr,
          nullptr,
          counts_.data(),
          pointers_.data(),
          logits_.data()};
}

}  // namespace mneme::llama
