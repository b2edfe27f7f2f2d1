// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_SRC_WINDOW_STATE_H_
#define MNEME_HOSTS_LLAMACPP_SRC_WINDOW_STATE_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "hosts/llamacpp/src/status.h"
#include "llama.h"

namespace mneme::llama {

// The name under which a memory keeps the state of its sequence's local window.
inline constexpr const char* kWindowAttachment = "llama.cpp/window";

// A sequence's part of llama.cpp's cache, and where it stands.
struct WindowState {
  std::string settings;  // what must be the same where it is restored (WindowSettings)
  int64_t base = 0;      // as in Sequence, as the next two
  int64_t first_position = 0;
  int64_t next_position = 0;
  std::string_view cells;  // llama_state_seq_get_data
};

// What decides the meaning of a sequence's state, beyond the model: llama.cpp's version and how it keeps the cache.
std::string WindowSettings(const llama_context_params& params, bool rotated_keys);

std::string EncodeWindowState(const WindowState& state);
// `state` refers to `bytes`. DataLoss if these are none of EncodeWindowState's.
Status DecodeWindowState(std::string_view bytes, WindowState* state);

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_SRC_WINDOW_STATE_H_
