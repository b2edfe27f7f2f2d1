// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_MAIN_PLAIN_SCORE_H_
#define MNEME_HOSTS_LLAMACPP_MAIN_PLAIN_SCORE_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "hosts/llamacpp/main/score.h"
#include "hosts/llamacpp/main/session.h"

namespace mneme::llama {

// What llama.cpp alone predicts: the text's tokens from `begin` on are scored, but for the first of them.

// Its own context of `context` tokens. It does not slide: each quarter of it is scored after the three quarters that
// come before, which are decoded anew, after the model's begin-of-text token where it wants one. Throws Failure.
Score ScoreNative(llama_model* model, const ModelSettings& settings, int64_t context, std::span<const llama_token> text,
                  size_t begin);

// A cache that keeps the first `pinned` tokens and a window that slides as that of a memory does, each at its true
// distance. A memory of the pinned tokens alone predicts the same with the policy "as-stored". Throws Failure.
Score ScoreBaseline(llama_model* model, const ModelSettings& settings, std::span<const llama_token> text, size_t begin);

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_MAIN_PLAIN_SCORE_H_
