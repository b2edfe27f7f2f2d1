// SPDX-License-Identifier: Apache-2.0
// Rows that stay on disk while their codes are in RAM, and codes that survive a restart. Neither changes a result.

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/synchronization/mutex.h"
#include "memory/segment/code_columns.h"
#include "tests/memory/attend_call.h"
#include "tests/storage/tamper.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint64_t kOwner = 41;
constexpr int64_t kHeads = 3;  // KV heads of both layers of the card

// The offset of the kind in a chunk's key (docs/design/format.md).
constexpr size_t kKindAt = 16;

class DiskRowsTest : public ::testing::Test {
 protected:
  DiskRowsTest() : random_(21) {
    options_.segment_tokens = 1024;
    options_.pinned_tokens = 5;
    reference_store_ = OpenStore(reference_folder_.store());
  }

  void Open(size_t budget = 0, DatabaseOptions::Mode mode = DatabaseOptions::Mode::kReadWrite) {
    StoreOptions options;
    options.ram_budget_bytes = budget;
    options.row_read_cost = row_read_cost_;
    options.database.mode = mode;
    options.database.log = [this](absl::string_view message) {
      absl::MutexLock lock(&log_mutex_);
      log_.emplace_back(message);
    };
    store_ = OpenStore(folder_.store(), options);
  }
  void Close() {
    if (memory_ != nullptr) ASSERT_OK(store_->CloseMemory(memory_));
    memory_.reset();
    store_.reset();
  }
  void Reopen(size_t budget = 0, DatabaseOptions::Mode mode = DatabaseOptions::Mode::kReadWrite) {
    Close();
    log_.clear();
    Open(budget, mode);
    auto memory = store_->OpenMemory("m", nullptr);
    ASSERT_OK(memory.status());
    memory_ = *memory;
  }

  // The same memory in a store whose rows all stay in RAM.
  void Create() {
    memory_ = *store_->CreateMemory("m", card_, options_);
    reference_ = *reference_store_->CreateMemory("m", card_, options_);
  }
  void Append(int64_t tokens) {
    for (Memory* memory : {memory_.get(), reference_.get()}) {
      const int64_t begin = memory->Info().next_token;
      for (int64_t done = 0; done < tokens; done += 400) {
        AppendTokens(*memory, nullptr, kOwner, begin + done, std::min<int64_t>(400, tokens - done));
        ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
      }
    }
  }

  void ExpectSameAs(Memory* memory, Memory* reference, Executor& executor = InlineExecutor()) {
    for (const PositionPolicy policy :
         {PositionPolicy::kAsStored, PositionPolicy::kFixedDistance, PositionPolicy::kClamped}) {
      for (size_t layer = 0; layer < card_.layers.size(); ++layer) {
        for (const int64_t queries : {1, 1, 20}) {
          AttendCall call(random_, MixedHeads(card_, layer, queries, policy));
          call.SetMemory(0, reference);
          ASSERT_OK(call.Run());
          const AttendResult expected = call.result();
          call.SetMemory(0, memory);
          ASSERT_OK(call.Run(executor));
          ASSERT_TRUE(call.result() == expected)
              << "policy " << static_cast<int>(policy) << " layer " << layer << " queries " << queries;
        }
      }
    }
  }
  void ExpectSame() { ExpectSameAs(memory_.get(), reference_.get()); }

  StoreStats Stats() { return *store_->Stats(); }
  VerifyReport Verify() {
    VerifyReport report;
    EXPECT_OK(store_->Verify(nullptr, &report));
    return report;
  }
  std::vector<std::string> Log() {
    absl::MutexLock lock(&log_mutex_);
    return log_;
  }

  // Changes all chunk values of some kinds behind the store's back; an empty new value deletes one. Returns: how many.
  int Change(const std::vector<ColumnKind>& kinds, const std::function<std::string(const std::string&)>& change) {
    int changed = 0;
    Tamper(folder_.store(),
           [&](rocksdb::DB& db, rocksdb::ColumnFamilyHandle& rows) {
             std::vector<std::pair<std::string, std::string>> found;
             const std::unique_ptr<rocksdb::Iterator> it(db.NewIterator(rocksdb::ReadOptions(), &rows));
             for (it->SeekToFirst(); it->Valid(); it->Next()) {
               const std::string key = it->key().ToString();
               if (key.size() <= kKindAt) continue;
               const auto kind = static_cast<ColumnKind>(key[kKindAt]);
               if (std::find(kinds.begin(), kinds.end(), kind) != kinds.end())
                 found.emplace_back(key, it->value().ToString());
             }
             for (const auto& [key, value] : found) {
               const std::string next = change(value);
               ASSERT_TRUE((next.empty() ? db.Delete({}, &rows, key) : db.Put({}, &rows, key, next)).ok());
               ++changed;
             }
           },
           {"rows", "default", "log", "index"});
    return changed;
  }

  // The bytes of the codes of `tokens` tokens, in RAM and on disk.

  TestRandom random_;
  // With the default, the memories of these tests are so small that whole loads are always cheaper than single reads.
  int64_t row_read_cost_ = 8;
  ModelCard card_ = UnequalCard();
  MemoryOptions options_;
  TempFolder folder_, reference_folder_;
  std::unique_ptr<Store> store_, reference_store_;
  std::shared_ptr<Memory> memory_, reference_;
  absl::Mutex log_mutex_;
  std::vector<std::string> log_;
};

TEST_F(DiskRowsTest, AReopenedMemoryIsSearchedFromItsCodes) {
  Open();
  Create();
  Append(5000);
  Reopen();
  // One query does not justify a load of whole keys or values.
  AttendCall call(random_, MixedHeads(card_, 0, 1, PositionPolicy::kAsStored));
  call.SetMemory(0, reference_.get());
  ASSERT_OK(call.Run());
  const AttendResult expected = call.result();
  call.SetMemory(0, memory_.get());
  ASSERT_OK(call.Run());
  EXPECT_TRUE(call.result() == expected);
  const StoreStats stats = Stats();
  EXPECT_EQ(stats.codes_loaded, memory_->Info().segments);
  EXPECT_EQ(stats.codes_rebuilt, 0);
  EXPECT_GT(stats.rows_read, 0);
  // Nothing of the other layer is loaded; of this layer the codes and the tail.
  EXPECT_LT(stats.ram_bytes, CodeBytes(card_, 5000) + (int64_t{1} << 19));
  ExpectSame();
  EXPECT_THAT(Log(), IsEmpty());
}

// Rows that cost more to read one by one are loaded as a whole, if the budget admits them.
TEST_F(DiskRowsTest, RowsThatAreReadOftenAreLoaded) {
  Open();
  Create();
  Append(5000);
  row_read_cost_ = 32;
  Reopen();
  ExpectSame();
  EXPECT_GT(Stats().rows_read, 0);
  for (int round = 0; round < 20; ++round) ExpectSame();
  const int64_t read = Stats().rows_read;
  ExpectSame();
  EXPECT_EQ(Stats().rows_read, read);
  EXPECT_GE(Stats().ram_bytes, memory_->Info().bytes * 9 / 10);
}

// A block of queries that would read a row many times loads all rows at once, whether or not they are kept.
TEST_F(DiskRowsTest, ABlockOfManyQueriesLoadsAllRows) {
  Open();
  Create();
  Append(3000);
  row_read_cost_ = StoreOptions().row_read_cost;
  for (const size_t budget : {size_t{0}, size_t{1}}) {
    Reopen(budget);
    ExpectSame();
    EXPECT_EQ(Stats().rows_read, 0);
  }
}

TEST_F(DiskRowsTest, ABudgetForCodesKeepsTheRowsOnDisk) {
  options_.segment_tokens = 4096;
  Open();
  Create();
  Append(13000);
  const int64_t sealed = 13000 - memory_->Info().tail_tokens;
  const int64_t codes = CodeBytes(card_, sealed);
  Reopen(static_cast<size_t>(codes + codes / 10));
  for (int round = 0; round < 10; ++round) ExpectSame();
  const StoreStats stats = Stats();
  EXPECT_EQ(stats.codes_loaded, 2 * memory_->Info().segments) << "once a layer and segment";
  const int64_t tail = memory_->Info().tail_tokens * memory_->Info().bytes / memory_->Info().tokens;
  EXPECT_LE(stats.ram_bytes, codes + codes / 10 + 4 * tail + (int64_t{1} << 16));
  int64_t dims = 0;
  for (const LayerCard& layer : card_.layers) dims += layer.kv_heads * ((layer.key_dim + 15) / 16 * 16);
  // The heads are narrow: 16 and 24 dims, with 4 bytes of bounds and 0.3 bytes of means a row.
  EXPECT_LE(static_cast<double>(codes), 1.3 * static_cast<double>(sealed * dims));
  const int64_t before = stats.rows_read;
  ExpectSame();
  EXPECT_GT(Stats().rows_read, before);
}

TEST_F(DiskRowsTest, EveryBudgetAndTypeGivesTheSameBits) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kI8}) {
    SCOPED_TRACE(DTypeName(dtype));
    options_.stored_dtype = dtype;
    if (store_ != nullptr) {
      Close();
      ASSERT_OK(reference_store_->CloseMemory(reference_));
      reference_.reset();
      ASSERT_OK(reference_store_->DropMemory("m"));
      Open();
      ASSERT_OK(store_->DropMemory("m"));
    } else {
      Open();
    }
    Create();
    Append(3000 + random_.Between(0, 900));
    const int64_t all = reference_->Info().bytes + CodeBytes(card_, 4000);
    for (const int64_t budget : {int64_t{1}, all / 8, all / 4, all / 2, all, int64_t{0}}) {
      row_read_cost_ = random_.OneOf<int64_t>({0, 8, 64, 16384});
      SCOPED_TRACE(absl::StrCat("budget ", budget, " of ", all, ", cost of a row ", row_read_cost_));
      Reopen(static_cast<size_t>(budget));
      ExpectSame();
      // The memory also grows, seals and evicts under the budget.
      Append(700);
      ExpectSame();
    }
    EXPECT_EQ(Verify().damaged_values, 0);
  }
}

TEST_F(DiskRowsTest, ForksEvictionsAndReadOnlyStoresGiveTheSameBits) {
  Open();
  Create();
  Append(4000);
  auto fork = *store_->ForkMemory(memory_, 2222, "fork");
  auto reference_fork = *reference_store_->ForkMemory(reference_, 2222, "fork");
  AppendTokens(*fork, nullptr, kOwner + 1, 2222, 600);
  AppendTokens(*reference_fork, nullptr, kOwner + 1, 2222, 600);
  ASSERT_OK(fork->Commit(Durability::kBuffered, nullptr));
  ASSERT_OK(reference_fork->Commit(Durability::kBuffered, nullptr));
  ASSERT_OK(store_->CloseMemory(fork));
  fork.reset();
  for (const DatabaseOptions::Mode mode :
       {DatabaseOptions::Mode::kReadWrite, DatabaseOptions::Mode::kReadOnly, DatabaseOptions::Mode::kFollow}) {
    SCOPED_TRACE(static_cast<int>(mode));
    // The fork comes first: it names fewer rows of the shared segment than its parent.
    Close();
    Open(20000, mode);
    fork = *store_->OpenMemory("fork", nullptr);
    ExpectSameAs(fork.get(), reference_fork.get());
    memory_ = *store_->OpenMemory("m", nullptr);
    ExpectSame();
    ExpectSameAs(fork.get(), reference_fork.get());
    ASSERT_OK(store_->CloseMemory(fork));
    fork.reset();
  }
  Reopen(20000);
  EXPECT_EQ(Stats().codes_rebuilt, 0);
  for (const int64_t keep : {2500, 1300, 300}) {
    for (Memory* memory : {memory_.get(), reference_.get()}) {
      ASSERT_OK(memory->Evict(keep));
      ASSERT_OK(memory->Maintain(nullptr));
    }
    ExpectSame();
  }
  for (Memory* memory : {memory_.get(), reference_.get()}) ASSERT_OK(memory->Truncate(3100));
  Append(1500);
  ExpectSame();
  EXPECT_EQ(Stats().codes_rebuilt, 0);
}

TEST_F(DiskRowsTest, DamagedCodesAreMadeAgainFromTheKeysAndReported) {
  Open();
  Create();
  Append(3000);
  const int64_t segments = memory_->Info().segments;
  for (const ColumnKind kind : {ColumnKind::kCodes, ColumnKind::kCodeMeans}) {
    for (const double place : {0.0, 0.3, 0.999}) {
      SCOPED_TRACE(absl::StrCat("kind ", static_cast<int>(kind), " at ", place));
      Close();
      ASSERT_EQ(Change({kind},
                       [&](std::string value) {
                         value[static_cast<size_t>(place * static_cast<double>(value.size()))] ^= 4;
                         return value;
                       }),
                segments * kHeads);
      Reopen();
      const VerifyReport report = Verify();
      EXPECT_EQ(report.damaged_indexes, segments * kHeads);
      EXPECT_EQ(report.damaged_values, 0);
      EXPECT_EQ(report.damaged_memories, 0);
      const size_t told = Log().size();
      ExpectSame();
      EXPECT_EQ(Stats().codes_rebuilt, 2 * segments);
      EXPECT_EQ(Stats().codes_loaded, 0);
      ASSERT_EQ(Log().size(), told + static_cast<size_t>(2 * segments));
      EXPECT_THAT(Log().back(), HasSubstr("codes are made again from their keys: segment "));
      // The codes were written again.
      EXPECT_EQ(Verify().damaged_indexes, 0);
      Reopen();
      ExpectSame();
      EXPECT_EQ(Stats().codes_rebuilt, 0);
      EXPECT_EQ(Stats().codes_loaded, 2 * segments);
    }
  }
}

// A store of an earlier version has no codes; in one of a later version their layout has another number.
TEST_F(DiskRowsTest, MissingCodesAreMadeWithoutALogLine) {
  Open();
  Create();
  Append(3000);
  const int64_t segments = memory_->Info().segments;
  Close();
  ASSERT_EQ(Change({ColumnKind::kCodes, ColumnKind::kCodeMeans}, [](const std::string&) { return std::string(); }),
            2 * segments * kHeads);
  // A store that is open for reading only writes no codes.
  for (int round = 0; round < 2; ++round) {
    Reopen(0, DatabaseOptions::Mode::kReadOnly);
    ExpectSame();
    EXPECT_EQ(Stats().codes_rebuilt, 2 * segments);
    EXPECT_EQ(Verify().damaged_indexes, 0);
    EXPECT_THAT(Log(), IsEmpty());
  }
  Reopen(5000);
  ExpectSame();
  EXPECT_THAT(Log(), IsEmpty());
  Reopen();
  ExpectSame();
  EXPECT_EQ(Stats().codes_rebuilt, 0);
  EXPECT_EQ(Stats().codes_loaded, 2 * segments);
}

// Damaged keys or values are never served: the call fails before it has written anything.
TEST_F(DiskRowsTest, DamagedRowsAreAnErrorThatNamesTheirChunk) {
  Open();
  Create();
  Append(3000);
  for (const ColumnKind kind : {ColumnKind::kKeys, ColumnKind::kValues}) {
    Close();
    // Changes the last byte of the rows of every sub-block but the first.
    const auto flip = [](std::string value) {
      for (size_t at = value.size() - 1; at > 200; at -= std::min<size_t>(at, 2000)) value[at] ^= 1;
      return value;
    };
    Change({kind}, flip);
    Reopen();
    AttendCall call(random_, MixedHeads(card_, 0, 3, PositionPolicy::kAsStored));
    call.SetMemory(0, memory_.get());
    const absl::Status status = call.Run();
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(kind == ColumnKind::kKeys ? "keys chunk" : "values chunk"));
    for (const float value : call.result().output) EXPECT_EQ(std::bit_cast<uint32_t>(value), 0x7f7f7f7fu);
    Close();
    Change({kind}, flip);
    Reopen();
    ExpectSame();
  }
}

TEST_F(DiskRowsTest, SearchReturnsRowsThatAreOnDisk) {
  Open();
  Create();
  Append(3000);
  for (const size_t budget : {size_t{0}, size_t{1}, size_t{30000}}) {
    Reopen(budget);
    for (size_t layer = 0; layer < card_.layers.size(); ++layer) {
      AttendCall call(random_, MixedHeads(card_, layer, 5, PositionPolicy::kAsStored));
      const LayerCard& shape = card_.layers[layer];
      const auto slots = static_cast<size_t>(5 * shape.query_heads * 24);
      struct Result {
        std::vector<int64_t> tokens;
        std::vector<float> scores, keys, values;
        bool operator==(const Result&) const = default;
      };
      const auto search = [&](Memory* memory) {
        call.SetMemory(0, memory);
        Result result;
        result.tokens.resize(slots);
        result.scores.resize(slots);
        result.keys.resize(slots * static_cast<size_t>(shape.key_dim));
        result.values.resize(slots * static_cast<size_t>(shape.value_dim));
        SearchRequest request(call.request().retrieve);
        request.top_k = 24;
        request.tokens = result.tokens.data();
        request.scores = result.scores.data();
        request.keys = result.keys.data();
        request.values = result.values.data();
        EXPECT_OK(Search(request, InlineExecutor()));
        return result;
      };
      EXPECT_TRUE(search(memory_.get()) == search(reference_.get()));
    }
  }
}

TEST_F(DiskRowsTest, ConcurrentSearchesGiveTheSameBits) {
  Open();
  Create();
  Append(5000);
  const auto pool = MakeThreadPool(3);
  for (const size_t budget : {size_t{1}, size_t{60000}, size_t{0}}) {
    Reopen(budget);
    std::vector<std::thread> threads;
    std::vector<AttendResult> expected;
    std::vector<std::unique_ptr<AttendCall>> calls;
    for (int i = 0; i < 4; ++i) {
      calls.push_back(std::make_unique<AttendCall>(
          random_, MixedHeads(card_, static_cast<size_t>(i % 2), 3 + i, PositionPolicy::kAsStored)));
      calls.back()->SetMemory(0, reference_.get());
      ASSERT_OK(calls.back()->Run());
      expected.push_back(calls.back()->result());
      calls.back()->SetMemory(0, memory_.get());
    }
    std::atomic<int> bad{0};
    for (size_t i = 0; i < calls.size(); ++i) {
      threads.emplace_back([&, i] {
        for (int round = 0; round < 15; ++round) {
          const absl::Status status = calls[i]->Run(i % 2 == 0 ? *pool : InlineExecutor());
          bad += !status.ok() || !(calls[i]->result() == expected[i]);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(bad, 0) << "budget " << budget;
  }
}

}  // namespace
}  // namespace mneme
