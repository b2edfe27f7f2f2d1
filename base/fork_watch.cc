// SPDX-License-Identifier: Apache-2.0
#include "base/fork_watch.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <mutex>

namespace mneme {
namespace {

std::atomic<bool> forked{false};

// -1: a free place. There is no lock, because a thread of the parent may hold it during the fork.
constexpr size_t kMostDescriptors = 4096;
std::atomic<int> descriptors[kMostDescriptors];

void AfterForkInChild() {
  forked.store(true, std::memory_order_relaxed);
  for (std::atomic<int>& place : descriptors) {
    const int fd = place.exchange(-1, std::memory_order_relaxed);
    if (fd >= 0) ::close(fd);
  }
}

// exit() runs the last registered function first, so functions that the host registers after its first store still run
// in the child.
void LeaveForkedChild(int status, void*) {
  if (!forked.load(std::memory_order_relaxed)) return;
  std::fflush(nullptr);
  ::_exit(status);
}

}  // namespace

void WatchForks() {
  static std::once_flag once;
  std::call_once(once, [] {
    for (std::atomic<int>& place : descriptors) place.store(-1, std::memory_order_relaxed);
    ::pthread_atfork(nullptr, nullptr, AfterForkInChild);
  });
}

void SkipEarlierDestructorsInForkedChild() {
  static std::once_flag once;
  std::call_once(once, [] { ::on_exit(LeaveForkedChild, nullptr); });
}

bool IsForkedChild() {
  return forked.load(std::memory_order_relaxed);
}

void CloseInForkedChild(int fd) {
  for (std::atomic<int>& place : descriptors) {
    int free = -1;
    if (place.compare_exchange_strong(free, fd, std::memory_order_relaxed)) return;
  }
}

void ForgetInForkedChild(int fd) {
  for (std::atomic<int>& place : descriptors) {
    int found = fd;
    if (place.compare_exchange_strong(found, -1, std::memory_order_relaxed)) return;
  }
}

}  // namespace mneme
