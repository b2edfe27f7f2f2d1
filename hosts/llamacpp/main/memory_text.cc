// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/main/memory_text.h"

#include <algorithm>
#include <string>
#include <vector>

#include "hosts/llamacpp/main/text.h"

namespace mneme::llama {
namespace {

constexpr int64_t kShortestMatch = 32;

// Token ids [begin, end) of the memory.
std::vector<llama_token> StoredTokens(const Memory& memory, const Session& session, int64_t begin, int64_t end) {
  std::vector<llama_token> tokens(static_cast<size_t>(std::max<int64_t>(end - begin, 0)));
  if (tokens.empty()) return tokens;
  const int32_t* layers = nullptr;
  mneme_llama_get_layers(session.adapter(), &layers);
  mneme_memory_read_args args = MNEME_MEMORY_READ_ARGS_INIT;
  args.layer = layers[0];
  args.begin = begin;
  args.tokens = end - begin;
  args.token_ids = tokens.data();
  CheckEngine(mneme_memory_read(memory.get(), &args));
  return tokens;
}

// The first token index in [begin, end) at which the memory and the text differ; `end`: none.
int64_t FirstDifference(const Memory& memory, const Session& session, std::span<const llama_token> text, int64_t begin,
                        int64_t end) {
  const std::vector<llama_token> stored = StoredTokens(memory, session, begin, end);
  return begin + (std::mismatch(stored.begin(), stored.end(), text.begin() + begin).first - stored.begin());
}

// The same over all that the memory keeps and the text has.
int64_t FirstDifference(const Memory& memory, const Session& session, std::span<const llama_token> text) {
  const mneme_memory_info info = memory.Info();
  const int64_t end = std::min(info.next_token, static_cast<int64_t>(text.size()));
  const int64_t pinned = std::min(info.pinned_tokens, end);
  if (const int64_t differs = FirstDifference(memory, session, text, 0, pinned); differs < pinned) return differs;
  const int64_t kept = std::min(std::max(info.first_kept, pinned), end);
  return FirstDifference(memory, session, text, kept, end);
}

[[noreturn]] void RefuseLonger(int64_t memory_tokens, size_t text_tokens) {
  throw Failure("the memory holds " + std::to_string(memory_tokens) + " tokens, the text has " +
                std::to_string(text_tokens));
}

[[noreturn]] void RefuseOther(int64_t token) {
  throw Failure("the memory holds another text: token " + std::to_string(token) +
                " differs; a memory takes one text, unless ingest is given --append");
}

// Whether the text spells from token `begin` on what `stored` spells.
bool SpellsTheSame(const llama_model* model, std::span<const llama_token> stored, std::span<const llama_token> text,
                   int64_t begin) {
  // Rows that were appended without a token id have -1.
  if (std::any_of(stored.begin(), stored.end(), [](llama_token token) { return token < 0; })) return false;
  std::string expected;
  for (const llama_token token : stored) expected += TokenText(model, token);
  std::string spelled;
  for (const llama_token token : text.subspan(static_cast<size_t>(begin))) {
    if (spelled.size() >= expected.size()) break;
    spelled += TokenText(model, token);
  }
  return spelled.starts_with(expected);
}

}  // namespace

void CheckSameText(const Memory& memory, const Session& session, std::span<const llama_token> text) {
  const int64_t held = memory.Info().next_token;
  if (held > static_cast<int64_t>(text.size())) RefuseLonger(held, text.size());
  if (const int64_t differs = FirstDifference(memory, session, text); differs < held) RefuseOther(differs);
}

int64_t AlignWithText(const Memory& memory, const Session& session, std::span<const llama_token> text) {
  const mneme_memory_info info = memory.Info();
  const int64_t differs = FirstDifference(memory, session, text);
  if (differs == info.next_token) return 0;
  if (differs == static_cast<int64_t>(text.size())) RefuseLonger(info.next_token, text.size());
  // Tokens between the pinned and the first kept one are gone: what they spelled is not known.
  if (differs < info.first_kept) RefuseOther(differs);
  if (!SpellsTheSame(session.model(), StoredTokens(memory, session, differs, info.next_token), text, differs)) {
    RefuseOther(differs);
  }
  CheckEngine(mneme_memory_truncate(memory.get(), differs));
  return info.next_token - differs;
}

int64_t TokensAtEnd(const Memory& memory, const Session& session, std::span<const llama_token> text) {
  const mneme_memory_info info = memory.Info();
  const int64_t size = static_cast<int64_t>(text.size());
  const int64_t begin = std::max(info.first_kept, info.next_token - size);
  const std::vector<llama_token> end = StoredTokens(memory, session, begin, info.next_token);
  // Knuth, Morris and Pratt: border[i] is the length of the longest proper prefix of the text that text[0, i] ends
  // with.
  std::vector<size_t> border(text.size(), 0);
  for (size_t i = 1, length = 0; i < text.size(); ++i) {
    while (length > 0 && text[i] != text[length]) length = border[length - 1];
    if (text[i] == text[length]) ++length;
    border[i] = length;
  }
  size_t length = 0;
  for (const llama_token token : end) {
    if (length == text.size()) length = border[length - 1];
    while (length > 0 && token != text[length]) length = border[length - 1];
    if (token == text[length]) ++length;
  }
  const auto found = static_cast<int64_t>(length);
  return found == size || found >= kShortestMatch ? found : 0;
}

}  // namespace mneme::llama
