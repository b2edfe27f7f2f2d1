// SPDX-License-Identifier: Apache-2.0
#include "tests/attention/cuda/emulated_append.h"

#include "tests/attention/cuda/emulator.h"

namespace mneme::cuda {

void EmulatedAppend(const AppendArgs& args, uint32_t seed) {
  constexpr int kWarps = 8;
  RunGrid<kWarps>(CeilDivide(args.tokens * args.heads, kWarps), 1, 1, 0, seed,
                  [&](EmulatedBlock<kWarps>& block) { AppendRows(block, args); });
}

}  // namespace mneme::cuda
