// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_SCRATCH_H_
#define MNEME_BASE_SCRATCH_H_

#include <cstddef>
#include <memory_resource>

namespace mneme {

// A memory resource for containers that live no longer than a block of code:
//
//   Scratch scratch;
//   std::pmr::vector<float> logits(&scratch);
//
// Each thread has a stack of memory. A Scratch allocates from its top and frees everything when it ends. The stack
// keeps its memory, so repeated work allocates nothing. Scratches nest: code that runs inside of the block, like a task
// of ParallelFor or a host's callback, makes its own Scratch on top and ends it first.
//
// Only the thread that made a Scratch may allocate from it, and only while it is the top one: std::logic_error
// otherwise. So a container that is handed to other code is given room before for everything that this code will add.
//
// A thread without a Scratch keeps at most kMaxScratchKept bytes.
class Scratch final : public std::pmr::memory_resource {
 public:
  Scratch();
  ~Scratch() override;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

 private:
  void* do_allocate(size_t bytes, size_t alignment) override;
  void do_deallocate(void*, size_t, size_t) override {}
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override { return this == &other; }

  Scratch* const below_;
  const size_t piece_;  // the top of the stack when this began
  const size_t used_;
};

inline constexpr size_t kMaxScratchKept = size_t{64} << 20;

// Bytes that the calling thread's stack holds, in use or not.
size_t ScratchHeld();

}  // namespace mneme

#endif  // MNEME_BASE_SCRATCH_H_
