// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/src/window_state.h"

#include <cstring>

#include "ggml.h"

namespace mneme::llama {
namespace {

constexpr std::string_view kMagic = "MNLW1\n";

// Numbers are little-endian, as those of llama.cpp's own state are on the machines that it is served on.
void AppendNumber(std::string* out, uint64_t number) {
  for (int shift = 0; shift < 64; shift += 8) out->push_back(static_cast<char>(number >> shift));
}

bool TakeNumber(std::string_view* in, uint64_t* number) {
  if (in->size() < 8) return false;
  *number = 0;
  for (int i = 0; i < 8; ++i) *number |= static_cast<uint64_t>(static_cast<uint8_t>((*in)[i])) << (8 * i);
  in->remove_prefix(8);
  return true;
}

Status Damaged() {
  return {MNEME_STATUS_DATA_LOSS, "the stored window is none that this adapter writes"};
}

}  // namespace

std::string WindowSettings(const llama_context_params& params, bool rotated_keys) {
  return "state " + std::to_string(LLAMA_STATE_SEQ_VERSION) + " of ggml " + ggml_version() + " " + ggml_commit() +
         ", keys " + ggml_type_name(params.type_k) + ", values " + ggml_type_name(params.type_v) +
         (params.swa_full ? ", full sliding layers" : ", short sliding layers") +
         (rotated_keys ? ", positions as stored" : ", positions of the window");
}

std::string EncodeWindowState(const WindowState& state) {
  std::string bytes(kMagic);
  AppendNumber(&bytes, state.settings.size());
  bytes += state.settings;
  AppendNumber(&bytes, static_cast<uint64_t>(state.base));
  AppendNumber(&bytes, static_cast<uint64_t>(state.first_position));
  AppendNumber(&bytes, static_cast<uint64_t>(state.next_position));
  bytes += state.cells;
  return bytes;
}

Status DecodeWindowState(std::string_view bytes, WindowState* state) {
  if (!bytes.starts_with(kMagic)) return Damaged();
  bytes.remove_prefix(kMagic.size());
  uint64_t size = 0;
  if (!TakeNumber(&bytes, &size) || size > bytes.size()) return Damaged();
  state->settings = bytes.substr(0, size);
  bytes.remove_prefix(size);
  for (int64_t* number : {&state->base, &state->first_position, &state->next_position}) {
    uint64_t value = 0;
    if (!TakeNumber(&bytes, &value)) return Damaged();
    *number = static_cast<int64_t>(value);
  }
  constexpr int64_t kMost = int64_t{1} << 48;
  const auto possible = [](int64_t number) { return number >= 0 && number < kMost; };
  if (!possible(state->base) || !possible(state->first_position) || !possible(state->next_position) ||
      state->first_position > state->next_position) {
    return Damaged();
  }
  state->cells = bytes;
  return Status();
}

}  // namespace mneme::llama
