// SPDX-License-Identifier: Apache-2.0
// What the adapter does around llama_decode: memories of sequences, the local window, and undoing what failed.
#include <algorithm>
#include <chrono>
#include <optional>
#include <string>

#include "hosts/llamacpp/src/adapter.h"

namespace mneme::llama {
namespace {

Status DecodeFailed(int32_t code) {
  switch (code) {
    case 1:
      return {MNEME_STATUS_RESOURCE_EXHAUSTED,
              "llama.cpp found no room for the batch: n_ctx must hold the windows of all sequences and the batch"};
    case 2: return {MNEME_STATUS_CANCELLED, "llama_decode was aborted by its abort callback"};
    case -1: return {MNEME_STATUS_INVALID_ARGUMENT, "llama_decode found the batch invalid"};
    default: return {MNEME_STATUS_INTERNAL, "llama_decode failed with " + std::to_string(code)};
  }
}

Status InfoOf(mneme_memory* memory, mneme_memory_info* info) {
  *info = MNEME_MEMORY_INFO_INIT;
  return FromEngine(mneme_memory_get_info(memory, info));
}

}  // namespace

Status Adapter::CheckMemory(llama_seq_id id, mneme_memory* memory, mneme_llama_mode mode) const {
  mneme_memory_info info;
  MNEME_LLAMA_RETURN_IF_ERROR(InfoOf(memory, &info));
  if (info.keys_rotated != (settings_.rotated() ? 1 : 0)) {
    return Refused(std::string("the memory keeps ") + (info.keys_rotated ? "rotated" : "unrotated") +
                   " keys, this position policy needs " + (info.keys_rotated ? "unrotated" : "rotated") + " ones");
  }
  // mneme_memory_open compares whole cards; this also catches memories opened without one.
  if (fingerprint_.compare(0, sizeof(info.weights_fingerprint) - 1, info.weights_fingerprint) != 0) {
    return Refused("the memory was made by weights '" + std::string(info.weights_fingerprint) + "' (" +
                   info.model_name + "), this model's are '" + fingerprint_ + "' (" + shape_.name + ")");
  }
  if (info.layers != static_cast<int32_t>(layers_.size())) {
    return Refused("the memory has " + std::to_string(info.layers) + " layers, the adapter " +
                   std::to_string(layers_.size()));
  }
  for (const auto& [other, sequence] : sequences_) {
    if (other == id || sequence.memory != memory) continue;
    if (sequence.append || mode == MNEME_LLAMA_MODE_APPEND) {
      return Refused("sequence " + std::to_string(other) +
                     " has this memory, too; only readers can share one (mneme_memory_fork makes another)");
    }
  }
  return Status();
}

Status Adapter::SetMemory(llama_seq_id id, mneme_memory* memory, mneme_llama_mode mode) {
  if (context_ == nullptr) return Refused("the adapter is bound to no context (mneme_llama_bind)");
  if (memory == nullptr) {
    sequences_.erase(id);
    return Status();
  }
  if (mode != MNEME_LLAMA_MODE_APPEND && mode != MNEME_LLAMA_MODE_READ) return Invalid("mode: unknown number");
  MNEME_LLAMA_RETURN_IF_ERROR(CheckSequenceId(id));
  if (llama_memory_seq_pos_max(llama_get_memory(context_), id) >= 0) {
    return Refused("sequence " + std::to_string(id) +
                   " is in llama.cpp's cache already; remove it first (llama_memory_seq_rm)");
  }
  MNEME_LLAMA_RETURN_IF_ERROR(CheckMemory(id, memory, mode));
  mneme_memory_info info;
  MNEME_LLAMA_RETURN_IF_ERROR(InfoOf(memory, &info));
  Sequence sequence;
  sequence.memory = memory;
  sequence.append = mode == MNEME_LLAMA_MODE_APPEND;
  sequence.memory_tokens = info.next_token;
  // Rotated keys stand at true positions, so the sequence goes on where the memory ends; unrotated ones let it start
  // anew.
  sequence.base = settings_.rotated() ? 0 : info.next_token;
  sequence.first_position = sequence.next_position = info.next_token - sequence.base;
  sequences_[id] = sequence;
  return Status();
}

Status Adapter::Slide(llama_seq_id id, int64_t keep) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return Invalid("sequence: " + std::to_string(id) + " has no memory");
  Sequence& sequence = found->second;
  if (keep < 0) return Invalid("keep: must not be negative");
  const llama_memory_t cache = llama_get_memory(context_);
  if (sequence.LocalTokens() > keep) {
    const int64_t first = sequence.next_position - keep;
    if (!llama_memory_seq_rm(cache, id, -1, static_cast<llama_pos>(first))) {
      return Refused("llama.cpp cannot remove the oldest tokens of a sequence from this cache");
    }
    sequence.first_position = first;
  }
  if (!settings_.rotated() && sequence.next_position >= restart_beyond_ && llama_memory_can_shift(cache)) {
    const int64_t shift = sequence.first_position;
    llama_memory_seq_add(cache, id, -1, -1, static_cast<llama_pos>(-shift));
    sequence.base += shift;
    sequence.first_position -= shift;
    sequence.next_position -= shift;
  }
  return Status();
}

llama_pos Adapter::NextPosition(llama_seq_id id) const {
  const auto found = sequences_.find(id);
  return found == sequences_.end() ? 0 : static_cast<llama_pos>(found->second.next_position);
}

Status Adapter::MakeRoom(BatchPlan* plan) {
  for (const SequenceStep& step : plan->steps) {
    if (step.sequence->LocalTokens() + step.tokens <= 2 * window_) continue;
    const int64_t before = step.sequence->next_position;
    MNEME_LLAMA_RETURN_IF_ERROR(Slide(step.id, window_));
    const auto restart = static_cast<llama_pos>(before - step.sequence->next_position);
    for (size_t token = 0; restart != 0 && token < plan->positions.size(); ++token) {
      if (plan->sequences[token] == step.id) plan->positions[token] -= restart;
    }
  }
  return Status();
}

Status Adapter::BeginSteps(BatchPlan* plan) {
  for (SequenceStep& step : plan->steps) {
    Sequence& sequence = *step.sequence;
    mneme_memory_info info;
    MNEME_LLAMA_RETURN_IF_ERROR(InfoOf(sequence.memory, &info));
    step.next_token = info.next_token;
    // What a reader sees is fixed; what a writer appends to must stand where it left it.
    if (sequence.append && info.next_token != sequence.memory_tokens) {
      return Refused("the memory stands at token " + std::to_string(info.next_token) + ", expected " +
                     std::to_string(sequence.memory_tokens) + "; it was appended to or truncated without the adapter");
    }
    const int64_t end = sequence.MemoryEnd();
    step.visible = end > 0 && info.tokens > 0 && (info.pinned_tokens > 0 || info.first_kept < end);
    MNEME_LLAMA_RETURN_IF_ERROR(FromEngine(mneme_snapshot_create(sequence.memory, &step.snapshot)));
  }
  return Status();
}

Status Adapter::CheckSequenceId(llama_seq_id id) const {
  const auto count = static_cast<llama_seq_id>(llama_n_seq_max(context_));
  if (id >= 0 && id < count) return Status();
  return Invalid("sequence: expected 0 to " + std::to_string(count - 1) + " (n_seq_max), got " + std::to_string(id));
}

Status Adapter::CheckBatch(const llama_batch& batch) const {
  const auto most = static_cast<int64_t>(llama_n_batch(context_));
  if (batch.n_tokens > most) {
    return Invalid("batch: has " + std::to_string(batch.n_tokens) + " tokens, the context takes at most " +
                   std::to_string(most) + " (n_batch)");
  }
  for (int32_t token = 0; token < batch.n_tokens; ++token) {
    if (batch.pos != nullptr && batch.pos[token] < 0) {
      return Invalid("batch: token " + std::to_string(token) + " has position " + std::to_string(batch.pos[token]));
    }
    if (batch.seq_id == nullptr || batch.n_seq_id == nullptr) continue;
    for (int32_t i = 0; i < batch.n_seq_id[token]; ++i) {
      MNEME_LLAMA_RETURN_IF_ERROR(CheckSequenceId(batch.seq_id[token][i]));
    }
  }
  return Status();
}

std::map<llama_seq_id, llama_pos> Adapter::LastPositions(const llama_batch& batch) const {
  std::map<llama_seq_id, llama_pos> last;
  const auto add = [&](llama_seq_id id) {
    if (!last.contains(id)) last[id] = llama_memory_seq_pos_max(llama_get_memory(context_), id);
  };
  for (int32_t token = 0; token < batch.n_tokens; ++token) {
    if (batch.seq_id == nullptr || batch.n_seq_id == nullptr) {
      add(0);
      break;
    }
    for (int32_t i = 0; i < batch.n_seq_id[token]; ++i) add(batch.seq_id[token][i]);
  }
  return last;
}

// What llama.cpp refused may name positions that were in the cache before; only what came after these is the batch's.
void Adapter::UndoSteps(const BatchPlan& plan, const std::map<llama_seq_id, llama_pos>& last) {
  for (const auto& [id, position] : last) llama_memory_seq_rm(llama_get_memory(context_), id, position + 1, -1);
  for (const SequenceStep& step : plan.steps) {
    if (step.sequence->append) mneme_memory_truncate(step.sequence->memory, step.next_token);
  }
}

Status Adapter::DecodePlanned(const llama_batch& batch, BatchPlan& plan) {
  MNEME_LLAMA_RETURN_IF_ERROR(BeginSteps(&plan));
  llama_batch placed = batch;
  placed.pos = plan.positions.data();
  const std::map<llama_seq_id, llama_pos> last = LastPositions(batch);
  step_.Begin(&plan, batch.token);
  const int32_t code = llama_decode(context_, placed);
  step_.End();
  Status status = step_.status();
  if (status.ok() && code != 0) status = DecodeFailed(code);
  if (status.ok() && !plan.steps.empty() && step_.tokens_done() != batch.n_tokens) {
    status =
        Refused("of the batch's " + std::to_string(batch.n_tokens) + " tokens, " + std::to_string(step_.tokens_done()) +
                " passed the adapter; is the context made from the prepared parameters?");
  }
  if (!status.ok()) {
    UndoSteps(plan, last);
    return status;
  }
  for (const SequenceStep& step : plan.steps) {
    Sequence& sequence = *step.sequence;
    sequence.next_position += step.tokens;
    if (sequence.append) {
      sequence.memory_tokens = std::max(sequence.memory_tokens, sequence.next_position + sequence.base);
    }
  }
  tokens_ += batch.n_tokens;
  return Status();
}

Status Adapter::Decode(const llama_batch& batch) {
  if (context_ == nullptr) return Refused("the adapter is bound to no context (mneme_llama_bind)");
  const auto start = std::chrono::steady_clock::now();
  std::optional<SharedThreads::Turn> turn;
  if (threads_ != nullptr) {
    turn.emplace(*threads_, batch.n_tokens > 1 ? llama_n_threads_batch(context_) : llama_n_threads(context_));
  }
  MNEME_LLAMA_RETURN_IF_ERROR(CheckBatch(batch));
  BatchPlan plan;
  MNEME_LLAMA_RETURN_IF_ERROR(PlanBatch(batch, sequences_, context_, settings_.rotated(), &plan));
  MNEME_LLAMA_RETURN_IF_ERROR(MakeRoom(&plan));
  const Status status = DecodePlanned(batch, plan);
  for (const SequenceStep& step : plan.steps) mneme_snapshot_release(step.snapshot);
  decode_us_ += std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - start).count();
  return status;
}

}  // namespace mneme::llama
