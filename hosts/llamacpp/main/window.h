// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_MAIN_WINDOW_H_
#define MNEME_HOSTS_LLAMACPP_MAIN_WINDOW_H_

#include "hosts/llamacpp/main/session.h"

namespace mneme::llama {

// Fills the local window of sequence 0, which has been given `memory`: from the state that is kept with the memory, or
// by decoding its newest tokens once more, with the reason and a bar on standard error. Throws Failure.
void ResumeWindow(Session& session, const Memory& memory);

// Keeps the local window of sequence 0, which appends to `memory`, and commits. If that cannot be done, a message on
// standard error says so, and the memory is as it was.
void SaveWindow(Session& session, const Memory& memory, mneme_durability durability);

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_MAIN_WINDOW_H_
