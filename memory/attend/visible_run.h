// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_VISIBLE_RUN_H_
#define MNEME_MEMORY_ATTEND_VISIBLE_RUN_H_

#include <cstdint>
#include <memory>

#include "memory/segment/index_run.h"

namespace mneme {

// A run is an index over consecutive sealed tokens. Of these the sequence may see tokens [token_begin, token_end).
struct VisibleRun {
  std::shared_ptr<IndexRun> run;
  int64_t token_begin = 0;
  int64_t token_end = 0;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_VISIBLE_RUN_H_
