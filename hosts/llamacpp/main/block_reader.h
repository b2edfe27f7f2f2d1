// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_MAIN_BLOCK_READER_H_
#define MNEME_HOSTS_LLAMACPP_MAIN_BLOCK_READER_H_

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "hosts/llamacpp/main/score.h"
#include "hosts/llamacpp/main/session.h"
#include "llama.h"

namespace mneme::llama {

// Where the time of taking text in went, in seconds.
struct IngestTimes {
  double total = 0.0;
  double model = 0.0;    // llama.cpp itself
  double adapter = 0.0;  // looking at the graph, and attending to local and retrieved rows
  double append = 0.0;   // appending and committing
};

// Attaches the memory to sequence 0, refills the local window with the block before the memory's end, and appends
// `tokens` in blocks, each committed before the next begins. on_commit: gets the number of durable tokens.
IngestTimes Ingest(Session& session, const Memory& memory, std::span<const llama_token> tokens,
                   const std::string& title, mneme_durability durability,
                   const std::function<void(int64_t)>& on_commit);

// Goes on in sequence 0 with `tokens`, block by block, and scores each but the first, which nothing in this call
// predicts. The rows are appended and not committed.
Score ScoreText(Session& session, std::span<const llama_token> tokens, const std::string& title);

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_MAIN_BLOCK_READER_H_
