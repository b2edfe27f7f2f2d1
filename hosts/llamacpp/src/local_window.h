// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_SRC_LOCAL_WINDOW_H_
#define MNEME_HOSTS_LLAMACPP_SRC_LOCAL_WINDOW_H_

#include <cstdint>
#include <vector>

#include "ggml.h"

namespace mneme::llama {

// Which of the cache's cells each of a run's queries sees. Cells lie in any order, so this is a set of bits; where they
// happen to lie in the order of their tokens, it is plain causal attention, which costs less.
struct LocalWindow {
  int64_t first_cell = 0;  // cells [first_cell, first_cell + cells) hold all that any query of the run sees
  int64_t cells = 0;
  int64_t first_visible = 0;  // how many cells the run's first query sees
  bool causal = false;        // query i sees exactly the first first_visible + i cells
  int64_t stride = 0;         // bytes a query of `bits`
  std::vector<uint8_t> bits;  // [queries][stride], least significant bit first; empty if causal
};

// `mask` [cells, tokens] f16, 0 for a cell that is seen; queries [begin, end) of its rows.
LocalWindow ReadLocalWindow(const ggml_tensor& mask, int64_t begin, int64_t end);

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_SRC_LOCAL_WINDOW_H_
