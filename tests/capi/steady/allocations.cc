// SPDX-License-Identifier: Apache-2.0
#include "tests/capi/steady/allocations.h"

#include <atomic>

#include "tests/capi/replaced_new.h"

namespace {

std::atomic<int64_t> all{0};
std::atomic<int64_t> counted{0};
thread_local bool counts = false;

}  // namespace

namespace mneme {

void BeforeNew() {
  all.fetch_add(1, std::memory_order_relaxed);
  if (counts) counted.fetch_add(1, std::memory_order_relaxed);
}

int64_t AllAllocations() {
  return all.load(std::memory_order_relaxed);
}

int64_t Allocations() {
  return counted.load(std::memory_order_relaxed);
}

void CountThisThread() {
  counts = true;
}

}  // namespace mneme
