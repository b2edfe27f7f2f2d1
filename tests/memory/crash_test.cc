// SPDX-License-Identifier: Apache-2.0
// A process that appends, commits, forks and evicts is killed at any moment. Everything that it was told is durable
// survives.
//
// The victim is this program again, started for CrashTest.DISABLED_Victim: a fork without exec would inherit RocksDB's
// threads' locks but not the threads. It notes in a shared mapping what it is about to do and what was acknowledged.

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <thread>

#include "absl/time/clock.h"
#include "tests/memory/testing.h"

extern char** environ;

namespace mneme {
namespace {

constexpr int kForks = 4;  // memory 0 is the root, the others come and go as its forks
constexpr char kFolderVariable[] = "MNEME_TEST_CRASH_FOLDER";

struct MemoryNote {
  std::atomic<int64_t> begun{0};         // its creation was begun …
  std::atomic<int64_t> there{0};         // … and acknowledged
  std::atomic<int64_t> fork_at{0};       // tokens before are the root's
  std::atomic<int64_t> owner{0};         // of the tokens from there on
  std::atomic<int64_t> appended{0};      // at most so many tokens
  std::atomic<int64_t> acknowledged{0};  // at least so many
  std::atomic<int64_t> evict_begun{0};   // first_kept is at most this …
  std::atomic<int64_t> evicted{0};       // … and at least this
};

struct Note {
  MemoryNote memories[kForks + 1];
  std::atomic<int64_t> next_owner{1};
  std::atomic<int64_t> rounds{0};
};

Note* MapNote(const std::string& path) {
  const int file = open(path.c_str(), O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, sizeof(Note)) != 0) std::abort();
  void* memory = mmap(nullptr, sizeof(Note), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (memory == MAP_FAILED) std::abort();
  return static_cast<Note*>(memory);  // zeros are a fresh one
}

std::string NameOf(int number) {
  return absl::StrCat("memory ", number);
}

MemoryOptions Options() {
  MemoryOptions options;
  options.segment_tokens = 256;
  options.index_spec = "ivf";
  return options;
}

uint64_t OwnerOf(const Note& note, int number, int64_t token) {
  const MemoryNote& memory = note.memories[number];
  return token < memory.fork_at ? 0 : static_cast<uint64_t>(memory.owner.load());
}

void Append(Memory& memory, const Note& note, int number, int64_t n) {
  const int64_t begin = memory.Info().next_token;
  AppendTokens(memory, nullptr, OwnerOf(note, number, begin), begin, n);
}

// Checks that the store holds everything that the note promises.
void ExpectPromises(const std::string& folder, Note& note) {
  const ModelCard card = UnequalCard();
  const auto store = OpenStore(folder);
  for (int number = 0; number <= kForks; ++number) {
    MemoryNote& promise = note.memories[number];
    const auto opened = store->OpenMemory(NameOf(number), &card);
    if (!opened.ok()) {
      ASSERT_TRUE(absl::IsNotFound(opened.status())) << opened.status();
      ASSERT_EQ(promise.there, 0) << NameOf(number) << " is lost";
      promise.begun = 0;
      continue;
    }
    ASSERT_EQ(promise.begun, 1) << NameOf(number) << " was never created";
    promise.there = 1;
    const auto& memory = *opened;
    const MemoryInfo info = memory->Info();
    ASSERT_GE(info.next_token, promise.acknowledged) << NameOf(number);
    ASSERT_LE(info.next_token, promise.appended) << NameOf(number);
    ASSERT_GE(info.first_kept, promise.evicted) << NameOf(number);
    ASSERT_LE(info.first_kept, promise.evict_begun) << NameOf(number);
    Oracle oracle(card, Options());
    for (int64_t token = 0; token < info.next_token;) {
      // Runs of one owner.
      int64_t n = 1;
      while (token + n < info.next_token && OwnerOf(note, number, token + n) == OwnerOf(note, number, token)) ++n;
      for (size_t layer = 0; layer < card.layers.size(); ++layer) {
        const uint64_t owner = OwnerOf(note, number, token);
        oracle.Append(layer, KeysOf(owner, card.layers[layer], token, n).tensor,
                      ValuesOf(owner, card.layers[layer], token, n).tensor, nullptr, nullptr);
      }
      token += n;
    }
    oracle.Evict(info.next_token - info.first_kept);
    ExpectHolds(*memory, oracle);
    // No layer has more rows than the others: rows that were not committed are gone from all layers.
    for (const int64_t end : memory->TakeSnapshot().layer_ends) ASSERT_EQ(end, info.next_token);
    // What the reopened store holds is durable, acknowledged or not: the next kill may not undo it.
    promise.appended = promise.acknowledged = info.next_token;
    promise.evict_begun = promise.evicted = info.first_kept;
    ASSERT_OK(store->CloseMemory(memory));
  }
  VerifyReport report;
  ASSERT_OK(store->Verify(nullptr, &report));
  ASSERT_EQ(report.damaged_memories, 0);
  ASSERT_EQ(report.damaged_values, 0);
}

TEST(CrashTest, DISABLED_Victim) {
  const char* folder = std::getenv(kFolderVariable);
  if (folder == nullptr) GTEST_SKIP() << "is started by CrashTest.AcknowledgedCommitsSurvive";
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // the victim ends with the test that started it
  Note& note = *MapNote(absl::StrCat(folder, "/note"));
  TestRandom random(static_cast<uint32_t>(getpid()));
  const ModelCard card = UnequalCard();
  StoreOptions options;
  options.background = random.Chance(0.5);
  const auto store = OpenStore(absl::StrCat(folder, "/store"), options);
  std::vector<std::shared_ptr<Memory>> memories(kForks + 1);
  for (int number = 0; number <= kForks; ++number) {
    if (note.memories[number].there) memories[static_cast<size_t>(number)] = *store->OpenMemory(NameOf(number), &card);
  }
  if (memories[0] == nullptr) {
    note.memories[0].begun = 1;
    memories[0] = *store->CreateMemory(NameOf(0), card, Options());
    note.memories[0].there = 1;
  }
  while (true) {
    ++note.rounds;
    const int number = static_cast<int>(random.Between(0, kForks));
    MemoryNote& mine = note.memories[number];
    std::shared_ptr<Memory>& memory = memories[static_cast<size_t>(number)];
    const int64_t root_next = memories[0]->Info().next_token;
    if (memory == nullptr) {
      // Fork the root.
      const int64_t at = random.Between(note.memories[0].evicted, root_next);
      mine.fork_at = at;
      mine.owner = note.next_owner++;
      mine.appended = at;
      mine.acknowledged = at;
      mine.evicted = note.memories[0].evicted.load();
      mine.evict_begun = mine.evicted.load();
      mine.begun = 1;
      auto fork = store->ForkMemory(memories[0], at, NameOf(number));
      if (!fork.ok()) std::abort();
      mine.there = 1;
      note.memories[0].acknowledged = root_next;
      memory = *fork;
      continue;
    }
    const int64_t dice = random.Between(0, 19);
    if (dice == 0 && number > 0) {
      mine.there = 0;
      if (!store->CloseMemory(memory).ok() || !store->DropMemory(NameOf(number)).ok()) std::abort();
      memory.reset();
      mine.begun = 0;
    } else if (dice == 1) {
      const MemoryInfo info = memory->Info();
      const int64_t keep = random.Between(0, info.tokens);
      mine.evict_begun = std::max(info.first_kept, info.next_token - keep);
      if (!memory->Evict(keep).ok()) std::abort();
      mine.evicted = memory->Info().first_kept;
      mine.acknowledged = info.next_token;
    } else if (dice == 2) {
      const int64_t next = memory->Info().next_token;
      if (!memory->Maintain(nullptr).ok()) std::abort();
      mine.acknowledged = next;
    } else {
      const int64_t n = random.OneOf<int64_t>({1, 1, 7, 100, 300});
      mine.appended = memory->Info().next_token + n;
      Append(*memory, note, number, n);
      if (random.Chance(0.5)) continue;
      int64_t durable = 0;
      if (!memory->Commit(random.Chance(0.2) ? Durability::kSynced : Durability::kBuffered, &durable).ok())
        std::abort();
      mine.acknowledged = durable;
    }
  }
}

TEST(CrashTest, AcknowledgedCommitsSurvive) {
  TempFolder folder;
  const char* wanted = std::getenv("MNEME_KILLS");
  const int kills = wanted != nullptr ? std::atoi(wanted) : 25;
  const char* seed = std::getenv("MNEME_SEED");
  TestRandom random(seed != nullptr ? static_cast<uint32_t>(std::atoi(seed)) : 99);
  Note& note = *MapNote(folder.path() + "/note");
  setenv(kFolderVariable, folder.path().c_str(), 1);
  char program[] = "/proc/self/exe";
  char filter[] = "--gtest_filter=CrashTest.DISABLED_Victim";
  char also[] = "--gtest_also_run_disabled_tests";
  char* arguments[] = {program, filter, also, nullptr};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  for (int kill_number = 0; kill_number < kills; ++kill_number) {
    SCOPED_TRACE(absl::StrCat("kill ", kill_number));
    const int64_t rounds = note.rounds;
    pid_t victim = 0;
    ASSERT_EQ(posix_spawn(&victim, program, &actions, nullptr, arguments, environ), 0);
    // Waits for a random number of rounds and a random time more, then kills the victim.
    const int64_t until = rounds + random.Between(1, 40);
    for (int i = 0; i < 60000 && note.rounds < until; ++i) {
      ASSERT_EQ(waitpid(victim, nullptr, WNOHANG), 0) << "the victim died by itself";
      absl::SleepFor(absl::Milliseconds(1));
    }
    absl::SleepFor(absl::Microseconds(random.Between(0, 3000)));
    kill(victim, SIGKILL);
    int status = 0;
    ASSERT_EQ(waitpid(victim, &status, 0), victim);
    ASSERT_TRUE(WIFSIGNALED(status));
    ExpectPromises(folder.store(), note);
    if (::testing::Test::HasFatalFailure() || ::testing::Test::HasNonfatalFailure()) break;
  }
  posix_spawn_file_actions_destroy(&actions);
  unsetenv(kFolderVariable);
  int64_t tokens = 0;
  for (const MemoryNote& memory : note.memories) tokens += memory.acknowledged;
  std::printf("[  CRASH   ] %d kills after %lld rounds; %lld tokens in the end\n", kills,
              static_cast<long long>(note.rounds), static_cast<long long>(tokens));
  munmap(&note, sizeof(Note));
}

}  // namespace
}  // namespace mneme
