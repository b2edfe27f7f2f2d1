// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_MAIN_TEXT_H_
#define MNEME_HOSTS_LLAMACPP_MAIN_TEXT_H_

#include <span>
#include <string>
#include <vector>

#include "hosts/llamacpp/main/settings.h"
#include "llama.h"

namespace mneme::llama {

// The model's tokens of `text`. special: whether control tokens written out in it count as such.
std::vector<llama_token> Tokenise(const llama_model* model, const std::string& text, bool special);

// The tokens that the settings name; those of each file come after the model's begin-of-text token, where it wants one.
// Throws Failure, for instance where a file is not UTF-8.
std::vector<llama_token> ReadText(const llama_model* model, const TextSettings& settings);

std::string TokenText(const llama_model* model, llama_token token);

// Negative log-likelihood of `token`, in nats, under softmax(logits).
double NegativeLogLikelihood(std::span<const float> logits, llama_token token);

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_MAIN_TEXT_H_
