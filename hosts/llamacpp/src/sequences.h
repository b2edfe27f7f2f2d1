// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_SRC_SEQUENCES_H_
#define MNEME_HOSTS_LLAMACPP_SRC_SEQUENCES_H_

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "hosts/llamacpp/include/mneme_llama.h"
#include "hosts/llamacpp/src/status.h"

namespace mneme::llama {

// One sequence of llama.cpp's cache that has a memory. Its cells hold positions [first_position, next_position) in one
// piece; the token at position p has token index p + base in the memory (or would have, if the memory is only read).
struct Sequence {
  mneme_memory* memory = nullptr;
  bool append = false;
  int64_t base = 0;
  int64_t first_position = 0;
  int64_t next_position = 0;
  int64_t memory_tokens = 0;  // the memory's next token: now if appended to, when it was given if only read

  int64_t LocalTokens() const { return next_position - first_position; }
  // Rows before this token index are the memory's part, the rest is in the cache.
  int64_t MemoryEnd() const { return std::min(memory_tokens, first_position + base); }
};

// A step's view of a sequence: what the layers of one decode need to know.
struct SequenceStep {
  llama_seq_id id = 0;
  Sequence* sequence = nullptr;
  mneme_snapshot* snapshot = nullptr;
  int64_t next_token = 0;  // of the memory before the step; rows from here on are appended
  int64_t tokens = 0;      // of the batch
  bool visible = false;    // whether any row of the memory can be retrieved
};

// Tokens [begin, end) of the batch: neighbours of one sequence. step: index into BatchPlan::steps, -1: no memory.
struct Run {
  int64_t begin = 0;
  int64_t end = 0;
  int32_t step = -1;
};

// What decoding a batch means for the sequences in it.
struct BatchPlan {
  std::vector<llama_pos> positions;     // [tokens]
  std::vector<llama_seq_id> sequences;  // [tokens], the first of each token
  std::vector<SequenceStep> steps;
  std::vector<Run> runs;
};

// Plans the batch: fills positions and runs of neighbours, and steps without snapshot, next_token and visibility, which
// depend on the memories.
// InvalidArgument: a token of several sequences of which one has a memory. FailedPrecondition: given positions that do
// not go on where the adapter stands.
Status PlanBatch(const llama_batch& batch, std::map<llama_seq_id, Sequence>& sequences, llama_context* context,
                 bool as_stored, BatchPlan* plan);

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_SRC_SEQUENCES_H_
