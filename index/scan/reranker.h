// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_RERANKER_H_
#define MNEME_INDEX_SCAN_RERANKER_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

#include "index/scan/scan_state.h"

namespace mneme {

// Internal to index/scan: reads the exact keys of candidates and pushes the rows into the query's top k. Not
// thread-safe.
class Reranker {
 public:
  explicit Reranker(ScanState* state) : state_(*state) {}

  // Prunes the candidates of one query if that costs less than reading the keys of all, and prefetches the first keys
  // that Rerank will read.
  // Returns: the order in which to rerank them, valid until they change.
  absl::Span<const int32_t> PrefetchCandidates(int64_t query);

  // Ranks the candidates of one query by their exact keys, in an order that Candidates::MostPromisingFirst gave, and
  // removes them. An error goes to ScanState::status.
  void Rerank(int64_t query, absl::Span<const int32_t> order);

 private:
  // Prefetches the keys of the batch that begins at order[begin].
  void PrefetchBatch(int64_t query, absl::Span<const int32_t> order, size_t begin);

  // Reads those keys of a batch that are not in RAM, whose address is null, and sets their addresses.
  void ReadMissingKeys(absl::Span<const Candidate> batch, const char** keys);

  ScanState& state_;
  std::vector<char> key_bytes_;  // the keys that ReadMissingKeys read
};

}  // namespace mneme

#endif  // MNEME_INDEX_SCAN_RERANKER_H_
