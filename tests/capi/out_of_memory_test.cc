// SPDX-License-Identifier: Apache-2.0
// A process that may not have more memory: a commit is refused, nothing is lost, and it works once there is memory
// again.

#include <sys/resource.h>

#include <cstdlib>

#include "tests/capi/testing.h"

namespace mneme {
namespace {

constexpr int64_t kManyTokens = 30000;

// In a process of its own: 0 if all went as it should, otherwise the line at which it did not.
int CommitWith(const std::string& path, rlim_t bytes_left) {
#define CHECK_LINE(holds) \
  if (!(holds)) return __LINE__ % 251 + 1
  alarm(60);  // a hang is a failure
  mneme_store* store = nullptr;
  CHECK_LINE(mneme_store_open(path.c_str(), nullptr, &store) == MNEME_OK);
  mneme_card* card = NewCard();
  mneme_memory* memory = nullptr;
  CHECK_LINE(mneme_memory_create(store, "m", card, nullptr, &memory) == MNEME_OK);
  CHECK_LINE(AppendTokens(memory, kLayer, kManyTokens) == MNEME_OK);
  CHECK_LINE(AppendTokens(memory, kOtherLayer, kManyTokens) == MNEME_OK);
  rlimit before;
  getrlimit(RLIMIT_AS, &before);
  const rlimit small{AddressSpace() + bytes_left, before.rlim_max};
  setrlimit(RLIMIT_AS, &small);
  int64_t durable = -1;
  const mneme_status first = mneme_memory_commit(memory, MNEME_DURABILITY_BUFFERED, &durable);
  const int64_t told = durable;
  const mneme_status dropped = mneme_memory_drop(store, "none");
  setrlimit(RLIMIT_AS, &before);
  CHECK_LINE(first == MNEME_OK || first == MNEME_STATUS_RESOURCE_EXHAUSTED);
  CHECK_LINE(told == (first == MNEME_OK ? kManyTokens : -1));
  CHECK_LINE(dropped == MNEME_STATUS_NOT_FOUND || dropped == MNEME_STATUS_RESOURCE_EXHAUSTED);
  CHECK_LINE(mneme_memory_commit(memory, MNEME_DURABILITY_SYNCED, &durable) == MNEME_OK && durable == kManyTokens);
  CHECK_LINE(mneme_memory_close(memory) == MNEME_OK && mneme_store_close(store) == MNEME_OK);
  CHECK_LINE(mneme_store_open(path.c_str(), nullptr, &store) == MNEME_OK);
  CHECK_LINE(mneme_memory_open(store, "m", card, &memory) == MNEME_OK && InfoOf(memory).tokens == kManyTokens);
  return 0;
#undef CHECK_LINE
}

TEST(OutOfMemoryTest, ACommitIsRefusedAndCanBeMadeAgain) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers reserve address space of their own";
#endif
  if (const char* argument = ChildArgument(); argument != nullptr) {
    const std::string text = argument;
    const size_t at = text.find(':');
    std::_Exit(CommitWith(text.substr(at + 1), std::stoul(text.substr(0, at)) << 20));
  }
  for (const int mib : {200, 100, 96, 90, 64, 40, 24, 12, 6, 3, 1, 0}) {
    const TempFolder folder;
    EXPECT_EQ(WaitFor(SpawnThisTest(std::to_string(mib) + ":" + folder.store())), 0) << mib << " MiB left";
  }
}

}  // namespace
}  // namespace mneme
