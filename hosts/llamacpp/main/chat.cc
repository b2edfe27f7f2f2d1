// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/main/chat.h"

#include "hosts/llamacpp/main/failure.h"
#include "hosts/llamacpp/main/text.h"

namespace mneme::llama {
namespace {

// Stand for the messages while the template is applied.
constexpr char kMessage[] = "MNEME-MESSAGE-4c1e";
constexpr char kAnswer[] = "MNEME-ANSWER-9b27";

std::string ApplyTemplate(const char* chat_template, const std::vector<llama_chat_message>& messages,
                          bool begin_answer) {
  std::string text(4096, '\0');
  for (int attempt = 0; attempt < 2; ++attempt) {
    const int32_t size = llama_chat_apply_template(chat_template, messages.data(), messages.size(), begin_answer,
                                                   text.data(), static_cast<int32_t>(text.size()));
    if (size < 0) break;
    const bool fits = static_cast<size_t>(size) <= text.size();
    text.resize(static_cast<size_t>(size));
    if (fits) return text;
  }
  throw Failure("llama.cpp does not know the model's chat template; leave --chat out");
}

size_t Find(const std::string& text, const std::string& mark) {
  const size_t found = text.find(mark);
  if (found == std::string::npos) throw Failure("the model's chat template leaves messages out; leave --chat out");
  return found;
}

void Append(const std::vector<llama_token>& from, std::vector<llama_token>* to) {
  to->insert(to->end(), from.begin(), from.end());
}

}  // namespace

ChatTurn MakeChatTurn(const llama_model* model, const std::string& message) {
  const char* chat_template = llama_model_chat_template(model, nullptr);
  if (chat_template == nullptr) throw Failure("the model brings no chat template; leave --chat out");
  const llama_chat_message user = {"user", kMessage};
  const llama_chat_message assistant = {"assistant", kAnswer};

  ChatTurn turn;
  const std::string opening = ApplyTemplate(chat_template, {user}, /*begin_answer=*/true);
  const size_t place = Find(opening, kMessage);
  Append(Tokenise(model, opening.substr(0, place), /*special=*/true), &turn.opening);
  Append(Tokenise(model, message, /*special=*/false), &turn.opening);
  Append(Tokenise(model, opening.substr(place + sizeof(kMessage) - 1), /*special=*/true), &turn.opening);

  const std::string whole = ApplyTemplate(chat_template, {user, assistant}, /*begin_answer=*/false);
  const std::string closing = whole.substr(Find(whole, kAnswer) + sizeof(kAnswer) - 1);
  turn.closing = Tokenise(model, closing, /*special=*/true);
  if (turn.closing.empty()) {
    const llama_vocab* vocabulary = llama_model_get_vocab(model);
    const llama_token end = llama_vocab_eot(vocabulary);
    turn.closing.push_back(end != LLAMA_TOKEN_NULL ? end : llama_vocab_eos(vocabulary));
  }
  return turn;
}

}  // namespace mneme::llama
