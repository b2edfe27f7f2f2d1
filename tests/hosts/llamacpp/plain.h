// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_HOSTS_LLAMACPP_PLAIN_H_
#define MNEME_TESTS_HOSTS_LLAMACPP_PLAIN_H_

#include <cstdint>
#include <span>

#include "hosts/llamacpp/main/session.h"

namespace mneme::llama {

// llama.cpp alone, with room for `n_ctx` tokens in its window, decoding at most `n_batch` at once.
ContextPtr PlainContext(llama_model* model, uint32_t n_ctx, uint32_t n_batch);

// Decodes with logits of every token, in sequence 0; fails the test if llama.cpp does.
void DecodePlain(llama_context* context, std::span<const llama_token> tokens);
std::span<const float> PlainLogits(llama_context* context, int32_t i);

}  // namespace mneme::llama

#endif  // MNEME_TESTS_HOSTS_LLAMACPP_PLAIN_H_
