// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_SEED_ROWS_H_
#define MNEME_MEMORY_ATTEND_SEED_ROWS_H_

#include <cstdint>
#include <memory_resource>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

#include "memory/attend/search_plan.h"

namespace mneme {

// The top_k rows that another query of the same head retrieved. A new query's own top_k rows all reach the least logit
// that it gives these rows. A scan takes that as its known threshold (CodeScan::Begin) and skips every row whose bound
// lies below it. The containers take their bytes from `arena`, which outlives the object.
class SeedRows {
 public:
  // tokens: different ones. Unless there are top_k of them, all visible and readable, the object has no rows.
  SeedRows(const SearchPlan& plan, int64_t kv_head, int32_t head, absl::Span<const int64_t> tokens,
           std::pmr::memory_resource* arena);
  SeedRows(SeedRows&&) = default;  // keys_ stay valid: read_ keeps its buffer

  // Returns: a logit that the worst of the top_k best rows for `query` is known to reach; -infinity without rows.
  float KnownThreshold(int64_t query) const;

 private:
  absl::Status ReadMissing(int64_t kv_head);

  const SearchPlan* plan_;
  int32_t head_;
  // One entry a row:
  std::pmr::vector<const VisibleRows*> owners_;
  std::pmr::vector<const char*> keys_;
  std::pmr::vector<int64_t> rows_;  // numbers within the owners
  std::pmr::vector<char> read_;     // the keys that RAM did not hold
};

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_SEED_ROWS_H_
