// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/src/sequences.h"

#include <string>

namespace mneme::llama {
namespace {

Status CheckTokenSequences(const llama_batch& batch, int32_t token, const std::map<llama_seq_id, Sequence>& sequences) {
  if (batch.seq_id == nullptr || batch.n_seq_id == nullptr) return Status();
  const int32_t count = batch.n_seq_id[token];
  if (count < 1) return Invalid("batch: token " + std::to_string(token) + " belongs to no sequence");
  for (int32_t i = 0; count > 1 && i < count; ++i) {
    if (sequences.contains(batch.seq_id[token][i])) {
      return Invalid("batch: token " + std::to_string(token) + " belongs to " + std::to_string(count) +
                     " sequences, of which " + std::to_string(batch.seq_id[token][i]) + " has a memory of its own");
    }
  }
  return Status();
}

Status WrongPosition(llama_seq_id sequence, int64_t given, int64_t expected, bool as_stored) {
  std::string message = "batch: sequence " + std::to_string(sequence) + " goes on at position " +
                        std::to_string(given) + ", expected " + std::to_string(expected);
  if (as_stored) message += "; rotated keys as stored allow no shifted positions";
  return Refused(message);
}

}  // namespace

Status PlanBatch(const llama_batch& batch, std::map<llama_seq_id, Sequence>& sequences, llama_context* context,
                 bool as_stored, BatchPlan* plan) {
  if (batch.n_tokens < 1) return Invalid("batch: has no tokens");
  if (batch.token == nullptr) return Invalid("batch: must bring token ids, embeddings are not served");
  std::map<llama_seq_id, int64_t> next;
  std::map<llama_seq_id, int32_t> steps;
  for (int32_t token = 0; token < batch.n_tokens; ++token) {
    MNEME_LLAMA_RETURN_IF_ERROR(CheckTokenSequences(batch, token, sequences));
    const llama_seq_id id = batch.seq_id == nullptr ? 0 : batch.seq_id[token][0];
    const auto sequence = sequences.find(id);
    if (!next.contains(id)) {
      next[id] = sequence != sequences.end() ? sequence->second.next_position
                 : batch.pos != nullptr      ? batch.pos[token]
                                             : llama_memory_seq_pos_max(llama_get_memory(context), id) + 1;
    }
    const int64_t position = next[id]++;
    if (sequence != sequences.end()) {
      if (batch.pos != nullptr && batch.pos[token] != position) {
        return WrongPosition(id, batch.pos[token], position, as_stored);
      }
      if (!steps.contains(id)) {
        steps[id] = static_cast<int32_t>(plan->steps.size());
        plan->steps.push_back({id, &sequence->second, nullptr, 0, 0, false});
      }
      ++plan->steps[steps[id]].tokens;
    }
    const bool goes_on = !plan->runs.empty() && plan->sequences.back() == id;
    if (!goes_on) plan->runs.push_back({token, token, sequence == sequences.end() ? -1 : steps[id]});
    plan->runs.back().end = token + 1;
    // Sequences without a memory keep the host's positions, whatever they are.
    plan->positions.push_back(batch.pos != nullptr ? batch.pos[token] : static_cast<llama_pos>(position));
    plan->sequences.push_back(id);
  }
  return Status();
}

}  // namespace mneme::llama
