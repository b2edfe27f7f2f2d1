// SPDX-License-Identifier: Apache-2.0
#include "tests/hosts/llamacpp/plain.h"

#include <vector>

#include "gtest/gtest.h"

namespace mneme::llama {

ContextPtr PlainContext(llama_model* model, uint32_t n_ctx, uint32_t n_batch) {
  llama_context_params params = llama_context_default_params();
  params.n_ctx = n_ctx;
  params.n_batch = params.n_ubatch = n_batch;
  params.n_threads = params.n_threads_batch = 2;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  return ContextPtr(llama_init_from_model(model, params));
}

void DecodePlain(llama_context* context, std::span<const llama_token> tokens) {
  std::vector<int8_t> logits(tokens.size(), 1);
  llama_batch batch = llama_batch_get_one(const_cast<llama_token*>(tokens.data()), static_cast<int32_t>(tokens.size()));
  batch.logits = logits.data();
  ASSERT_EQ(llama_decode(context, batch), 0);
}

std::span<const float> PlainLogits(llama_context* context, int32_t i) {
  const int32_t size = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(context)));
  return {llama_get_logits_ith(context, i), static_cast<size_t>(size)};
}

}  // namespace mneme::llama
