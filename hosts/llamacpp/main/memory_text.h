// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_MAIN_MEMORY_TEXT_H_
#define MNEME_HOSTS_LLAMACPP_MAIN_MEMORY_TEXT_H_

#include <cstdint>
#include <span>

#include "hosts/llamacpp/main/session.h"
#include "llama.h"

namespace mneme::llama {

// Which text a memory holds, by the token ids that are stored with its rows.

// Throws Failure if the memory holds other tokens than `text` where it should hold these: token index i is text[i].
void CheckSameText(const Memory& memory, const Session& session, std::span<const llama_token> text);

// Makes the memory hold the begin of `text`, and returns how many of its tokens were taken back for that. A text that
// grew is divided into other tokens around its former end: where the memory's last tokens spell what the text spells
// there, they are truncated. Throws Failure if the memory holds another text, or a longer one.
int64_t AlignWithText(const Memory& memory, const Session& session, std::span<const llama_token> text);

// The number of tokens at the begin of `text` that the memory ends with; 0 where these are fewer than 32 and not all of
// `text`, since such a short match may be chance.
int64_t TokensAtEnd(const Memory& memory, const Session& session, std::span<const llama_token> text);

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_MAIN_MEMORY_TEXT_H_
