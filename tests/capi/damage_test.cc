// SPDX-License-Identifier: Apache-2.0
// Damaged stores through the C ABI: what is damaged is named and never served, and everything else goes on.

#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "tests/capi/calls.h"
#include "tests/storage/tamper.h"

namespace mneme {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::Contains;
using ::testing::Eq;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

void CollectLog(void* context, mneme_log_level, const char* message) {
  static_cast<std::vector<std::string>*>(context)->emplace_back(message);
}

// A closed store with two memories of two sealed segments of 256 tokens each, "good" and "bad".
class DamageTest : public ::testing::Test {
 protected:
  static constexpr int64_t kRows = 512;

  DamageTest() {
    Open();
    for (const char* name : {"good", "bad"}) {
      mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
      options.stored_dtype = MNEME_DTYPE_F32;
      options.segment_tokens = 256;
      mneme_memory* memory = nullptr;
      EXPECT_OK(mneme_memory_create(store_, name, card_, &options, &memory));
      for (const int32_t half : {0, 1}) {
        for (const int32_t layer : {kLayer, kOtherLayer}) {
          EXPECT_OK(AppendTokens(memory, layer, kRows / 2, Seed(name, layer, half)));
        }
        EXPECT_OK(mneme_memory_commit(memory, MNEME_DURABILITY_SYNCED, nullptr));
      }
      EXPECT_OK(mneme_memory_close(memory));
    }
    Close();
    Open();  // from the log into tables
    Close();
  }
  ~DamageTest() override {
    Close();
    mneme_card_release(card_);
  }

  static uint32_t Seed(const std::string& name, int32_t layer, int32_t half) {
    return (name == "bad" ? 1000u : 0u) + static_cast<uint32_t>(100 * half + layer);
  }
  // The values of a layer as they were appended.
  static std::vector<float> Values(const std::string& name, int32_t layer) {
    std::vector<float> both;
    for (const int32_t half : {0, 1}) {
      Tensor values({kRows / 2, kKvHeads, kValueDim});
      values.Fill(Seed(name, layer, half) + 1);
      both.insert(both.end(), values.data.begin(), values.data.end());
    }
    return both;
  }

  void Open() {
    mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
    options.log = CollectLog;
    options.log_context = &messages_;
    ASSERT_OK(mneme_store_open(folder_.store().c_str(), &options, &store_));
  }
  void Close() {
    EXPECT_OK(mneme_store_close(store_));
    store_ = nullptr;
  }
  mneme_store_verify_report Verify() {
    mneme_store_verify_report report = MNEME_STORE_VERIFY_REPORT_INIT;
    EXPECT_OK(mneme_store_verify(store_, nullptr, nullptr, &report));
    return report;
  }
  void ExpectGoodWorks() {
    mneme_memory* memory = nullptr;
    ASSERT_OK(mneme_memory_open(store_, "good", card_, &memory));
    AttendCall call(memory);
    EXPECT_OK(call.Run());
    EXPECT_OK(AppendTokens(memory, kLayer, 3));
    EXPECT_OK(AppendTokens(memory, kOtherLayer, 3));
    EXPECT_OK(mneme_memory_commit(memory, MNEME_DURABILITY_BUFFERED, nullptr));
    EXPECT_OK(mneme_memory_close(memory));
  }

  TempFolder folder_;
  std::vector<std::string> messages_;
  mneme_store* store_ = nullptr;
  mneme_card* card_ = NewCard();
};

TEST_F(DamageTest, ADamagedManifestCostsItsMemoryOnly) {
  Tamper(folder_.store(), [](rocksdb::DB& db, rocksdb::ColumnFamilyHandle& family) {
    std::string manifest;
    ASSERT_TRUE(db.Get(rocksdb::ReadOptions(), &family, "mbad", &manifest).ok());
    manifest[manifest.size() / 2] ^= 1;
    ASSERT_TRUE(db.Put(rocksdb::WriteOptions(), &family, "mbad", manifest).ok());
  });
  Open();
  EXPECT_THAT(messages_, Contains(HasSubstr("bad"))) << "the log says so at open";
  auto* const untouched = reinterpret_cast<mneme_memory*>(uintptr_t{0x5a5a});
  mneme_memory* memory = untouched;
  ExpectRefused(mneme_memory_open(store_, "bad", card_, &memory), MNEME_STATUS_DATA_LOSS, "bad");
  EXPECT_EQ(memory, untouched);
  EXPECT_EQ(mneme_memory_create(store_, "bad", card_, nullptr, &memory), MNEME_STATUS_ALREADY_EXISTS)
      << "damage does not make room for another";
  ExpectGoodWorks();
  mneme_store_verify_report report = Verify();
  EXPECT_EQ(report.memories, 2);
  EXPECT_EQ(report.damaged_memories, 1);
  EXPECT_OK(mneme_memory_drop(store_, "bad"));
  report = Verify();
  EXPECT_EQ(report.memories, 1);
  EXPECT_EQ(report.damaged_memories, 0);
}

TEST_F(DamageTest, DamagedRowsAreNamedAndNotServed) {
  // One bit of the value of token 300, layer 3, head 1.
  const std::vector<float> values = Values("bad", kLayer);
  const std::string row(reinterpret_cast<const char*>(values.data() + (300 * kKvHeads + 1) * kValueDim),
                        kValueDim * sizeof(float));
  int flipped = 0;
  for (const auto& entry : fs::directory_iterator(folder_.store())) {
    std::string bytes = ReadFile(entry.path());
    const size_t at = bytes.find(row);
    if (at == std::string::npos) continue;
    bytes[at + 5] ^= 0x10;
    WriteFile(entry.path(), bytes);
    ++flipped;
  }
  ASSERT_EQ(flipped, 1);
  Open();
  mneme_memory *bad = nullptr, *good = nullptr;
  ASSERT_OK(mneme_memory_open(store_, "bad", card_, &bad));
  ASSERT_OK(mneme_memory_open(store_, "good", card_, &good));
  {
    AttendCall call(bad);
    call.args.statuses = nullptr;
    ExpectRefused(call.Run(), MNEME_STATUS_DATA_LOSS, "layer 3 head 1 values");
    EXPECT_TRUE(call.OutputsUntouched());
    AttendBackwardCall backward(good);
    backward.forward.memories[0] = bad;
    ExpectRefused(backward.Run(), MNEME_STATUS_DATA_LOSS, "layer 3 head 1 values");
    EXPECT_TRUE(backward.OutputsUntouched());
    // Keys alone are sound, and so are the other layer and the tokens of the other segment.
    SearchCall search(bad);
    search.args.values = nullptr;
    EXPECT_OK(search.Run());
    AttendCall other(bad);
    other.args.layer = kOtherLayer;
    EXPECT_OK(other.Run());
    EXPECT_EQ(other.statuses.data()[0], MNEME_OK);
    AttendCall before(bad);
    before.memory_end[0] = 256;
    EXPECT_OK(before.Run());
    EXPECT_EQ(before.statuses.data()[0], MNEME_OK);
  }
  {
    // Of a batch with statuses only the damaged sequence fails.
    AttendCall both(good);
    both.memories = {bad, good};
    both.Batch(2);
    both.query_offsets = {0, 1, 2};
    both.local_offsets = {0, 2, 5};
    ASSERT_OK(both.Run());
    EXPECT_EQ(both.statuses.data()[0], MNEME_STATUS_DATA_LOSS);
    EXPECT_EQ(both.statuses.data()[1], MNEME_OK);
    constexpr size_t kQuery = kQueryHeads * kValueDim;
    for (size_t i = 0; i < kQuery; ++i) EXPECT_EQ(both.output.data[i], 0.0f);
    EXPECT_NE(both.output.data[kQuery], 0.0f);
  }
  Tensor rows({2, kKvHeads, kValueDim});
  mneme_memory_read_args read = MNEME_MEMORY_READ_ARGS_INIT;
  read.layer = kLayer;
  read.begin = 299;
  read.tokens = 2;
  read.values = &rows.view;
  ExpectRefused(mneme_memory_read(bad, &read), MNEME_STATUS_DATA_LOSS, "values");
  const mneme_store_verify_report report = Verify();
  EXPECT_EQ(report.memories, 2);
  EXPECT_EQ(report.damaged_memories, 1);
  EXPECT_EQ(report.damaged_values, 1);
  EXPECT_THAT(messages_, Contains(AllOf(HasSubstr("memory \"bad\": segment "),
                                        HasSubstr("layer 3 head 1 values chunk 0 (rows 0 to 255)"))));
  EXPECT_OK(mneme_memory_close(bad));
  EXPECT_OK(mneme_memory_close(good));
  ExpectGoodWorks();
  EXPECT_OK(mneme_memory_drop(store_, "bad"));
  EXPECT_EQ(Verify().damaged_memories, 0);
}

// Whatever byte of whatever file changes: what is served is what was stored.
TEST_F(DamageTest, NoFlippedByteIsServed) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder_.store())) {
    if (fs::file_size(entry.path()) > 0) files.push_back(entry.path().filename());
  }
  const char* const wanted = std::getenv("MNEME_FLIPS");
  const int flips = wanted != nullptr ? std::atoi(wanted) : 40;
  int served = 0, refused = 0;
  for (int flip = 0; flip < flips; ++flip) {
    const fs::path file = files[random() % files.size()];
    const TempFolder copy;
    fs::copy(folder_.store(), copy.store(), fs::copy_options::recursive);
    std::string bytes = ReadFile(fs::path(copy.store()) / file);
    const size_t at = random() % bytes.size();
    SCOPED_TRACE(::testing::Message() << file << " at " << at);
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8));
    WriteFile(fs::path(copy.store()) / file, bytes);
    mneme_store* store = nullptr;
    mneme_status status = mneme_store_open(copy.store().c_str(), nullptr, &store);
    const auto expected = AnyOf(Eq(MNEME_OK), Eq(MNEME_STATUS_DATA_LOSS), Eq(MNEME_STATUS_FAILED_PRECONDITION),
                                Eq(MNEME_STATUS_NOT_FOUND));
    EXPECT_THAT(status, expected) << mneme_last_error();
    if (status != MNEME_OK) {
      ++refused;
      continue;
    }
    for (const char* name : {"good", "bad"}) {
      mneme_memory* memory = nullptr;
      status = mneme_memory_open(store, name, card_, &memory);
      EXPECT_THAT(status, AnyOf(Eq(MNEME_OK), Eq(MNEME_STATUS_DATA_LOSS))) << mneme_last_error();
      if (status != MNEME_OK) {
        ++refused;
        continue;
      }
      for (const int32_t layer : {kLayer, kOtherLayer}) {
        Tensor values({kRows, kKvHeads, kValueDim});
        mneme_memory_read_args read = MNEME_MEMORY_READ_ARGS_INIT;
        read.layer = layer;
        read.tokens = kRows;
        read.values = &values.view;
        status = mneme_memory_read(memory, &read);
        EXPECT_THAT(status, AnyOf(Eq(MNEME_OK), Eq(MNEME_STATUS_DATA_LOSS))) << mneme_last_error();
        if (status == MNEME_OK) {
          EXPECT_TRUE(values.data == Values(name, layer)) << name;
          ++served;
        } else {
          ++refused;
        }
      }
      EXPECT_OK(mneme_memory_close(memory));
    }
    EXPECT_OK(mneme_store_close(store));
  }
  std::printf("%d reads served, %d refused\n", served, refused);
}

}  // namespace
}  // namespace mneme
