// SPDX-License-Identifier: Apache-2.0
// A disk that is full, by a small tmpfs of the test's own: commits say so, lose nothing, and work again when there is
// room.

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "tests/capi/testing.h"

namespace mneme {
namespace {

constexpr int kSkip = 77;

// Takes up `bytes` of the disk that holds `path`.
bool WriteBallast(const std::string& path, size_t bytes) {
  const int file = open(path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  if (file < 0) return false;
  const bool done = posix_fallocate(file, 0, static_cast<off_t>(bytes)) == 0;
  close(file);
  return done;
}

// Values of tokens [begin, begin + n) of layer 3, to compare.
std::vector<float> ReadValues(mneme_memory* memory, int64_t begin, int64_t n) {
  Tensor values({n, kKvHeads, kValueDim});
  mneme_memory_read_args read = MNEME_MEMORY_READ_ARGS_INIT;
  read.layer = kLayer;
  read.begin = begin;
  read.tokens = n;
  read.values = &values.view;
  EXPECT_OK(mneme_memory_read(memory, &read));
  return values.data;
}

mneme_status AppendBoth(mneme_memory* memory, uint32_t seed) {
  const mneme_status status = AppendTokens(memory, kLayer, 2000, seed);
  return status == MNEME_OK ? AppendTokens(memory, kOtherLayer, 2000, seed + 1) : status;
}

void ExpectAllThere(const std::string& path, int64_t durable, mneme_store_mode mode) {
  mneme_store* store = nullptr;
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  options.mode = mode;
  ASSERT_OK(mneme_store_open(path.c_str(), &options, &store));
  mneme_memory* memory = nullptr;
  ASSERT_OK(mneme_memory_open(store, "m", nullptr, &memory));
  EXPECT_GE(InfoOf(memory).next_token, durable);
  for (int64_t token = 0; token < durable; token += 2000) {
    Tensor values({2000, kKvHeads, kValueDim});
    values.Fill(static_cast<uint32_t>(token + 1));
    EXPECT_TRUE(ReadValues(memory, token, 2000) == values.data) << "from token " << token;
  }
  EXPECT_OK(mneme_memory_close(memory));
  EXPECT_OK(mneme_store_close(store));
}

void Work(const std::string& disk, mneme_durability durability) {
  const std::string path = disk + "/store";
  ASSERT_TRUE(WriteBallast(disk + "/ballast", 12 << 20));
  mneme_store* store = nullptr;
  ASSERT_OK(mneme_store_open(path.c_str(), nullptr, &store));
  mneme_card* const card = NewCard();
  mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
  options.stored_dtype = MNEME_DTYPE_F32;
  mneme_memory* memory = nullptr;
  ASSERT_OK(mneme_memory_create(store, "m", card, &options, &memory));
  int64_t durable = 0;
  mneme_status status = MNEME_OK;
  int64_t appended = 0;
  // 2,000 tokens have half a megabyte.
  for (; appended < 200000 && status == MNEME_OK; appended += 2000) {
    ASSERT_OK(AppendBoth(memory, static_cast<uint32_t>(appended)));
    status = mneme_memory_commit(memory, durability, &durable);
  }
  std::printf("full after %lld tokens: %s: %s\n", static_cast<long long>(durable), mneme_status_name(status),
              mneme_last_error());
  EXPECT_TRUE(status == MNEME_STATUS_RESOURCE_EXHAUSTED || status == MNEME_STATUS_UNAVAILABLE) << mneme_last_error();
  EXPECT_EQ(mneme_status_classify(status), MNEME_CLASS_TRANSIENT);
  EXPECT_GT(durable, 0);
  EXPECT_EQ(InfoOf(memory).tokens_durable, durable);
  EXPECT_EQ(InfoOf(memory).next_token, appended) << "what was not committed can still be read";
  // While the disk is full: again no commit, and everything can be read, here and by another.
  EXPECT_NE(mneme_memory_commit(memory, durability, nullptr), MNEME_OK);
  for (int64_t token = 0; token < appended; token += 2000) {
    Tensor values({2000, kKvHeads, kValueDim});
    values.Fill(static_cast<uint32_t>(token + 1));
    EXPECT_TRUE(ReadValues(memory, token, 2000) == values.data) << "from token " << token;
  }
  ExpectAllThere(path, durable, MNEME_MODE_READ_ONLY);
  // With room again the same memory commits what it could not.
  ASSERT_EQ(unlink((disk + "/ballast").c_str()), 0);
  status = mneme_memory_commit(memory, durability, &durable);
  EXPECT_EQ(status, MNEME_OK) << mneme_last_error();
  EXPECT_EQ(durable, appended);
  EXPECT_OK(mneme_memory_close(memory));
  EXPECT_OK(mneme_store_close(store));
  ExpectAllThere(path, durable, MNEME_MODE_READ_WRITE);
  mneme_card_release(card);
}

// In a process and a mount namespace of its own.
void Child(const std::string& disk, mneme_durability durability) {
  if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
      mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=24m") != 0) {
    std::printf("no tmpfs can be mounted here: %s\n", std::strerror(errno));
    std::fflush(stdout);
    _exit(kSkip);
  }
  Work(disk, durability);
}

class FullDiskTest : public ::testing::TestWithParam<mneme_durability> {};

TEST_P(FullDiskTest, CommitsSayItLoseNothingAndComeBack) {
  if (const char* const disk = ChildArgument()) return Child(disk, GetParam());
  const TempFolder folder;
  const int status = WaitFor(SpawnThisTest(folder.path()));
  if (status == kSkip) GTEST_SKIP() << "mounting a tmpfs is not permitted";
  EXPECT_EQ(status, 0);
}

INSTANTIATE_TEST_SUITE_P(Durabilities, FullDiskTest,
                         ::testing::Values(MNEME_DURABILITY_BUFFERED, MNEME_DURABILITY_SYNCED));

}  // namespace
}  // namespace mneme
