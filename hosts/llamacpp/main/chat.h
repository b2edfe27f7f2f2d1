// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_MAIN_CHAT_H_
#define MNEME_HOSTS_LLAMACPP_MAIN_CHAT_H_

#include <string>
#include <vector>

#include "llama.h"

namespace mneme::llama {

// What the model's chat template puts around an answer.
struct ChatTurn {
  std::vector<llama_token> opening;  // the user's message and the beginning of the answer
  std::vector<llama_token> closing;  // after the answer: the end-of-turn token and what follows it, such as a newline
};

// Control tokens are those of the template; what the user's message spells out in their form stays text. Throws Failure
// where the model has no template that llama.cpp knows.
ChatTurn MakeChatTurn(const llama_model* model, const std::string& message);

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_MAIN_CHAT_H_
