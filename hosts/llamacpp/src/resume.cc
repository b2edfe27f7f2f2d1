// SPDX-License-Identifier: Apache-2.0
// How a sequence gets its local window back: from the state that is kept with its memory, or by decoding its newest
// tokens once more; and how it goes back to an earlier token.
#include <algorithm>
#include <string>
#include <vector>

#include "hosts/llamacpp/src/adapter.h"
#include "hosts/llamacpp/src/window_state.h"

namespace mneme::llama {
namespace {

// With progress, tokens are decoded so many at a time.
constexpr int64_t kProgressTokens = 128;

// The ids of the memory's newest tokens.
Status ReadTokenIds(mneme_memory* memory, int32_t layer, int64_t begin, std::vector<int32_t>* ids) {
  mneme_memory_read_args args = MNEME_MEMORY_READ_ARGS_INIT;
  args.layer = layer;
  args.begin = begin;
  args.token_ids = ids->data();
  args.tokens = static_cast<int64_t>(ids->size());
  MNEME_LLAMA_RETURN_IF_ERROR(FromEngine(mneme_memory_read(memory, &args)));
  if (std::find(ids->begin(), ids->end(), -1) == ids->end()) return Status();
  return Refused("the memory was appended to without token ids; its window cannot be decoded again");
}

}  // namespace

Status Adapter::FindSequence(llama_seq_id id, Sequence** sequence) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return Refused("sequence " + std::to_string(id) + " has no memory");
  *sequence = &found->second;
  return Status();
}

Status Adapter::FindEmptyWindow(llama_seq_id id, Sequence** sequence, mneme_memory_info* info) {
  MNEME_LLAMA_RETURN_IF_ERROR(FindSequence(id, sequence));
  if ((*sequence)->LocalTokens() > 0) return Refused("the sequence's window is not empty");
  *info = MNEME_MEMORY_INFO_INIT;
  return FromEngine(mneme_memory_get_info((*sequence)->memory, info));
}

Status Adapter::Resume(llama_seq_id id, int64_t tokens, mneme_progress_fn progress, void* progress_context) {
  Sequence* found;
  mneme_memory_info info;
  MNEME_LLAMA_RETURN_IF_ERROR(FindEmptyWindow(id, &found, &info));
  Sequence& sequence = *found;
  // The newest tokens in one piece: what lies before the first kept one is gone, but for the pinned.
  const int64_t held = info.first_kept <= info.pinned_tokens ? info.next_token : info.next_token - info.first_kept;
  tokens = std::min({tokens, held, 2 * window_});
  if (tokens <= 0) return Status();

  const int64_t begin = info.next_token - tokens;
  std::vector<int32_t> ids(static_cast<size_t>(tokens));
  MNEME_LLAMA_RETURN_IF_ERROR(ReadTokenIds(sequence.memory, layers_.front(), begin, &ids));
  const Sequence before = sequence;
  if (settings_.rotated()) {
    sequence.first_position = sequence.next_position = begin;
  } else {
    sequence.base = begin;
  }
  Status status = DecodeAgain(id, ids, progress, progress_context);
  if (!status.ok()) {
    llama_memory_seq_rm(llama_get_memory(context_), id, -1, -1);
    sequence = before;
  }
  return status;
}

Status Adapter::DecodeAgain(llama_seq_id id, std::vector<int32_t>& ids, mneme_progress_fn progress,
                            void* progress_context) {
  const auto tokens = static_cast<int64_t>(ids.size());
  std::vector<int32_t> one(ids.size(), 1);
  std::vector<llama_seq_id*> sequence_ids(ids.size(), &id);
  int64_t batch_tokens = llama_n_batch(context_);
  if (progress != nullptr) batch_tokens = std::min(batch_tokens, kProgressTokens);
  for (int64_t done = 0; done < tokens;) {
    const auto count = static_cast<int32_t>(std::min(batch_tokens, tokens - done));
    llama_batch batch = {count, ids.data() + done, nullptr, nullptr, one.data(), sequence_ids.data(), nullptr};
    MNEME_LLAMA_RETURN_IF_ERROR(Decode(batch));
    done += count;
    if (progress != nullptr && progress(progress_context, done, tokens) != 0) {
      return {MNEME_STATUS_CANCELLED, "cancelled by its progress callback"};
    }
  }
  return Status();
}

Status Adapter::SaveWindow(llama_seq_id id) {
  Sequence* found;
  MNEME_LLAMA_RETURN_IF_ERROR(FindSequence(id, &found));
  const Sequence& sequence = *found;
  if (!sequence.append) return Refused("the sequence only reads its memory; only one that appends keeps its window");
  std::string cells(llama_state_seq_get_size(context_, id), '\0');
  cells.resize(llama_state_seq_get_data(context_, reinterpret_cast<uint8_t*>(cells.data()), cells.size(), id));
  if (cells.empty()) return {MNEME_STATUS_INTERNAL, "llama.cpp gave no state of the sequence"};
  const std::string bytes = EncodeWindowState({.settings = window_settings_,
                                               .base = sequence.base,
                                               .first_position = sequence.first_position,
                                               .next_position = sequence.next_position,
                                               .cells = cells});
  return FromEngine(mneme_memory_set_attachment(sequence.memory, kWindowAttachment, bytes.data(), bytes.size(),
                                                sequence.memory_tokens));
}

// Whether a stored window is that of the memory as it is now, and fits here.
Status Adapter::CheckWindow(const WindowState& state, int64_t made_at, int64_t next_token) const {
  if (made_at != next_token || state.next_position + state.base != next_token) {
    return Refused("the stored window ends at token " + std::to_string(made_at) + ", the memory at token " +
                   std::to_string(next_token));
  }
  if (state.settings != window_settings_) {
    return Refused("the stored window was made by '" + state.settings + "', this context has '" + window_settings_ +
                   "'");
  }
  if (state.next_position - state.first_position > 2 * window_) {
    return Refused("the stored window has " + std::to_string(state.next_position - state.first_position) +
                   " tokens, this adapter's holds at most " + std::to_string(2 * window_));
  }
  return Status();
}

Status Adapter::RestoreWindow(llama_seq_id id) {
  Sequence* found;
  mneme_memory_info info;
  MNEME_LLAMA_RETURN_IF_ERROR(FindEmptyWindow(id, &found, &info));
  Sequence& sequence = *found;
  size_t size = 0;
  int64_t made_at = 0;
  MNEME_LLAMA_RETURN_IF_ERROR(
      FromEngine(mneme_memory_get_attachment(sequence.memory, kWindowAttachment, nullptr, 0, &size, &made_at)));
  std::string bytes(size, '\0');
  MNEME_LLAMA_RETURN_IF_ERROR(
      FromEngine(mneme_memory_get_attachment(sequence.memory, kWindowAttachment, bytes.data(), size, &size, &made_at)));
  WindowState state;
  MNEME_LLAMA_RETURN_IF_ERROR(DecodeWindowState(bytes, &state));
  MNEME_LLAMA_RETURN_IF_ERROR(CheckWindow(state, made_at, info.next_token));
  const llama_memory_t cache = llama_get_memory(context_);
  const size_t read =
      llama_state_seq_set_data(context_, reinterpret_cast<const uint8_t*>(state.cells.data()), state.cells.size(), id);
  if (read != state.cells.size() ||
      llama_memory_seq_pos_max(cache, id) + 1 != static_cast<llama_pos>(state.next_position) ||
      llama_memory_seq_pos_min(cache, id) != static_cast<llama_pos>(state.first_position)) {
    llama_memory_seq_rm(cache, id, -1, -1);
    return Refused("llama.cpp does not take the stored window");
  }
  sequence.base = state.base;
  sequence.first_position = state.first_position;
  sequence.next_position = state.next_position;
  sequence.memory_tokens = info.next_token;
  return Status();
}

Status Adapter::Rewind(llama_seq_id id, int64_t tokens) {
  Sequence* found;
  MNEME_LLAMA_RETURN_IF_ERROR(FindSequence(id, &found));
  Sequence& sequence = *found;
  const int64_t end = sequence.next_position + sequence.base;
  const int64_t first = sequence.first_position + sequence.base;
  // What a reader has decoded is in its window alone.
  const int64_t least = sequence.append ? 0 : std::max(first, sequence.memory_tokens);
  if (tokens < least || tokens > end) {
    return {MNEME_STATUS_OUT_OF_RANGE, "tokens: expected " + std::to_string(least) + " to " + std::to_string(end) +
                                           " (where the sequence stands), got " + std::to_string(tokens)};
  }
  if (tokens == end) return Status();
  if (sequence.append) {
    MNEME_LLAMA_RETURN_IF_ERROR(FromEngine(mneme_memory_truncate(sequence.memory, tokens)));
    sequence.memory_tokens = tokens;
  }
  const llama_memory_t cache = llama_get_memory(context_);
  const int64_t position = tokens - sequence.base;
  const bool cut = tokens > first && llama_memory_seq_rm(cache, id, static_cast<llama_pos>(position), -1);
  if (cut) {
    sequence.next_position = position;
    return Status();
  }
  // Nothing of the window is left, or llama.cpp cannot cut this cache: resume fills it again.
  llama_memory_seq_rm(cache, id, -1, -1);
  sequence.base = settings_.rotated() ? 0 : tokens;
  sequence.first_position = sequence.next_position = tokens - sequence.base;
  return Status();
}

}  // namespace mneme::llama
