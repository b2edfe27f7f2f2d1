// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_INTERLEAVED_SCHEDULE_H_
#define MNEME_MEMORY_ATTEND_INTERLEAVED_SCHEDULE_H_

#include <algorithm>
#include <cstddef>

namespace mneme {

// One list of two kinds of work items: searches, each of which first waits for RAM and then computes, and local
// attention, which only computes. Threads that all begin with a search wait for RAM together and then compute together
// while RAM is idle. So half of the threads begin with local attention and stay out of step. The rest of the local
// items follow the last search. The order depends on the counts alone.
class InterleavedSchedule {
 public:
  struct Item {
    bool is_search;
    size_t number;  // from 0, among the items of its kind
  };

  // width: how many threads take items, in the order of the list.
  InterleavedSchedule(size_t searches, size_t locals, size_t width)
      : searches_(searches),
        locals_(locals),
        first_searches_(width > 1 ? std::min(searches, (width + 1) / 2) : searches),
        first_locals_(width > 1 ? (locals + 1) / 2 : 0) {}

  size_t size() const { return searches_ + locals_; }

  Item At(size_t i) const {
    if (i < first_searches_) return {true, i};
    if (i < first_searches_ + first_locals_) return {false, i - first_searches_};
    if (i < searches_ + first_locals_) return {true, i - first_locals_};
    return {false, i - searches_};
  }

 private:
  const size_t searches_;
  const size_t locals_;
  const size_t first_searches_;  // before all local items
  const size_t first_locals_;    // between the first and the other searches
};

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_INTERLEAVED_SCHEDULE_H_
