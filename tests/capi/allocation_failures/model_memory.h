// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_CAPI_ALLOCATION_FAILURES_MODEL_MEMORY_H_
#define MNEME_TESTS_CAPI_ALLOCATION_FAILURES_MODEL_MEMORY_H_

#include <cstdint>
#include <string>

#include "tests/capi/testing.h"

namespace mneme {

// Rows whose numbers follow from layer, token, head and place alone, so that what a memory holds can be checked bit for
// bit. Memories are to be of f32 and of NewCard().

// Tokens [first, first + n) of one layer.
class ModelRows {
 public:
  ModelRows(int32_t layer, int64_t first, int64_t n);

  // Allocates nothing by itself.
  mneme_status AppendTo(mneme_memory* memory) const;

 private:
  const int32_t layer_;
  Tensor keys_, values_;
};

// Returns: what is wrong with the rows that the memory holds, or "". Every layer must have the same number of tokens.
std::string WrongRows(mneme_memory* memory);

}  // namespace mneme

#endif  // MNEME_TESTS_CAPI_ALLOCATION_FAILURES_MODEL_MEMORY_H_
