// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_INTERLEAVED_ATTEND_H_
#define MNEME_MEMORY_ATTEND_INTERLEAVED_ATTEND_H_

#include "absl/status/status.h"

#include "base/parallel.h"
#include "memory/attend/tile_fusion.h"

namespace mneme {

// Whether AttendInterleaved can serve these inputs, which have a view: few queries retrieve few rows, and RAM holds all
// of them. Many queries or rows keep all threads busy without it, and would need long buffers. Rows that have to be
// read may be damaged, which must be known before any output is written.
bool CanInterleave(const SequenceInputs& inputs);

// Attends for a whole sequence in one pass over an InterleavedSchedule: items of the search and local attention of each
// KV head. The thread that runs the last item of a KV head fuses that head and writes its outputs.
// inputs: with a view, and `top` empty lists for it. Requires: CanInterleave(inputs).
absl::Status AttendInterleaved(SequenceInputs& inputs, Executor& executor);

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_INTERLEAVED_ATTEND_H_
