// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_MAIN_MEMORY_COPY_H_
#define MNEME_HOSTS_LLAMACPP_MAIN_MEMORY_COPY_H_

#include <memory>
#include <span>
#include <string>

#include "base/temporary_folder.h"
#include "hosts/llamacpp/main/session.h"
#include "llama.h"

namespace mneme::llama {

// A copy of a memory in a store of its own that is removed afterwards: it can be appended to where the original must
// stay as it is. It has the original's bound, pinned tokens, row type and rows; sealed rows are indexed by the exact
// scan.
class MemoryCopy {
 public:
  // tokens: the text that the memory holds, at least as far as it holds it. Throws Failure.
  MemoryCopy(const Session& session, const Memory& original, const ThreadsPtr& threads,
             std::span<const llama_token> tokens);

  const Memory& memory() const { return *memory_; }

 private:
  void Create(const Session& session, const mneme_memory_info& info);
  // Tokens [begin, end) of all layers; zeros where the original has evicted them.
  void CopyTokens(const Session& session, const Memory& original, int64_t begin, int64_t end, bool evicted,
                  std::span<const llama_token> tokens);

  const TemporaryFolder folder_;
  const Store store_;
  std::unique_ptr<Memory> memory_;
};

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_MAIN_MEMORY_COPY_H_
