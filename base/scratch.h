// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_SCRATCH_H_
#define MNEME_BASE_SCRATCH_H_

#include <cstddef>
#include <memory_resource>

namespace mneme {

// Memory for what lives no longer than a block of code:
//
//   Scratch scratch;
//   std::pmr::vector<float> logits(&scratch);
//
// A thread's scratches lie upon one another on a pile of its own. A Scratch takes from the top and gives nothing back
// until it ends, then all of it; the pile keeps its memory, so what is done over and over allocates nothing once it
// has been done. What runs inside of a Scratch's block on the same thread, be it tasks of a ParallelFor or a host's
// callback that calls the engine again, makes its own on top, and has ended it when the block goes on.
//
// A Scratch gives memory to its own thread only, and only while no other lies on it, since what a container took from
// below the top would be given away again: std::logic_error otherwise. Whoever hands a container to others gives it
// room for all that these will add.
//
// Without a Scratch a thread keeps one piece of at most kMostScratchKept bytes.
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
  const size_t piece_;  // the pile's top when this began
  const size_t used_;
};

inline constexpr size_t kMostScratchKept = size_t{64} << 20;

// Bytes that the calling thread's pile holds, in use or not.
size_t ScratchHeld();

}  // namespace mneme

#endif  // MNEME_BASE_SCRATCH_H_
