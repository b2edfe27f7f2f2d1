// SPDX-License-Identifier: Apache-2.0
// Handles that were closed, are of another kind, or never were: refused by every function, in every place.

#include <functional>
#include <string>
#include <vector>

#include "tests/capi/calls.h"

namespace mneme {
namespace {

template <typename Handle>
Handle* Made(uintptr_t bits) {
  return reinterpret_cast<Handle*>(bits);
}

template <typename To, typename From>
To* Other(From* handle) {
  return reinterpret_cast<To*>(handle);
}

class HandlesTest : public CapiTest {
 protected:
  HandlesTest() {
    EXPECT_OK(mneme_snapshot_create(memory_, &snapshot_));
    garbage_ = {1, 2, 7, 0x5a5a, 0xffffffff, uintptr_t{1} << 32, ~uintptr_t{0}, reinterpret_cast<uintptr_t>(&garbage_)};
    const uintptr_t real[] = {reinterpret_cast<uintptr_t>(store_), reinterpret_cast<uintptr_t>(card_),
                              reinterpret_cast<uintptr_t>(memory_), reinterpret_cast<uintptr_t>(snapshot_)};
    for (const uintptr_t handle : real) {
      // The same slot with other bits of kind and generation.
      for (const uintptr_t bit : {1, 2, 4}) garbage_.push_back(handle ^ bit);
      garbage_.push_back(handle + (uintptr_t{1} << 32));
      garbage_.push_back(handle - (uintptr_t{1} << 32));
      garbage_.push_back(handle ^ (uintptr_t{1} << 63));
    }
  }
  ~HandlesTest() override { mneme_snapshot_release(snapshot_); }

  // A handle of each kind that was good once.
  mneme_card* ClosedCard() {
    mneme_card* const card = NewCard();
    mneme_card_release(card);
    return card;
  }
  mneme_memory* ClosedMemory() {
    mneme_memory* const memory = NewMemory("closed");
    EXPECT_OK(mneme_memory_close(memory));
    EXPECT_OK(mneme_memory_drop(store_, "closed"));
    return memory;
  }
  mneme_snapshot* ClosedSnapshot() {
    mneme_snapshot* snapshot = nullptr;
    EXPECT_OK(mneme_snapshot_create(memory_, &snapshot));
    mneme_snapshot_release(snapshot);
    return snapshot;
  }
  mneme_store* ClosedStore() {
    mneme_store* store = nullptr;
    EXPECT_OK(mneme_store_open((folder_.path() + "/closed").c_str(), nullptr, &store));
    EXPECT_OK(mneme_store_close(store));
    return store;
  }

  template <typename Handle>
  std::vector<Handle*> Bad(std::vector<Handle*> bad, bool null = true) {
    for (const uintptr_t bits : garbage_) bad.push_back(Made<Handle>(bits));
    if (null) bad.push_back(nullptr);
    return bad;
  }

  mneme_snapshot* snapshot_ = nullptr;
  std::vector<uintptr_t> garbage_;
};

TEST_F(HandlesTest, EveryFunctionOfAStoreRefusesWhatIsNone) {
  std::vector<mneme_store*> bad = Bad<mneme_store>(
      {ClosedStore(), Other<mneme_store>(card_), Other<mneme_store>(memory_), Other<mneme_store>(snapshot_)});
  mneme_memory* memory = nullptr;
  mneme_store_verify_report report = MNEME_STORE_VERIFY_REPORT_INIT;
  mneme_store_stats stats = MNEME_STORE_STATS_INIT;
  const mneme_store_backup_args backup = MNEME_STORE_BACKUP_ARGS_INIT;
  mneme_memory_import_args import = MNEME_MEMORY_IMPORT_ARGS_INIT;
  import.path = "none.safetensors";
  const auto visitor = [](void*, const char*, int64_t, int64_t) { return 0; };
  const std::string before = StateOf(memory_);
  for (mneme_store* const store : bad) {
    SCOPED_TRACE(::testing::Message() << store);
    if (store != nullptr) ExpectRefused(mneme_store_close(store), MNEME_STATUS_INVALID_ARGUMENT, "store");
    ExpectRefused(mneme_store_list(store, visitor, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "store");
    ExpectRefused(mneme_store_compact(store), MNEME_STATUS_INVALID_ARGUMENT, "store");
    ExpectRefused(mneme_store_backup(store, &backup, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "store");
    ExpectRefused(mneme_store_verify(store, nullptr, nullptr, &report), MNEME_STATUS_INVALID_ARGUMENT, "store");
    ExpectRefused(mneme_store_get_stats(store, &stats), MNEME_STATUS_INVALID_ARGUMENT, "store");
    ExpectRefused(mneme_store_write_metrics(
                      store, [](void*, const char*, size_t) {}, nullptr),
                  MNEME_STATUS_INVALID_ARGUMENT, "store");
    ExpectRefused(mneme_memory_create(store, "new", card_, nullptr, &memory), MNEME_STATUS_INVALID_ARGUMENT, "store");
    ExpectRefused(mneme_memory_open(store, "m", nullptr, &memory), MNEME_STATUS_INVALID_ARGUMENT, "store");
    ExpectRefused(mneme_memory_drop(store, "m"), MNEME_STATUS_INVALID_ARGUMENT, "store");
    ExpectRefused(mneme_memory_import(store, &import, &memory), MNEME_STATUS_INVALID_ARGUMENT, "store");
  }
  EXPECT_EQ(memory, nullptr);
  EXPECT_OK(mneme_store_close(nullptr));
  EXPECT_TRUE(StateOf(memory_) == before);
}

TEST_F(HandlesTest, EveryFunctionOfACardRefusesWhatIsNone) {
  const mneme_layer_desc layer = LayerDesc(11);
  auto* const untouched = Made<mneme_memory>(0x5a5a);
  mneme_memory* memory = untouched;
  for (mneme_card* const card : Bad<mneme_card>(
           {ClosedCard(), Other<mneme_card>(store_), Other<mneme_card>(memory_), Other<mneme_card>(snapshot_)})) {
    SCOPED_TRACE(::testing::Message() << card);
    ExpectRefused(mneme_card_add_layer(card, &layer), MNEME_STATUS_INVALID_ARGUMENT, "card");
    ExpectRefused(mneme_memory_create(store_, "new", card, nullptr, &memory), MNEME_STATUS_INVALID_ARGUMENT, "card");
    if (card == nullptr) continue;  // no check of the model
    ExpectRefused(mneme_memory_open(store_, "m", card, &memory), MNEME_STATUS_INVALID_ARGUMENT, "expected");
    mneme_memory_import_args import = MNEME_MEMORY_IMPORT_ARGS_INIT;
    import.path = "none.safetensors", import.expected = card;
    ExpectRefused(mneme_memory_import(store_, &import, &memory), MNEME_STATUS_INVALID_ARGUMENT, "args.expected");
    mneme_card_release(card);  // nothing happens
  }
  EXPECT_EQ(memory, untouched);
  EXPECT_OK(mneme_card_add_layer(card_, &layer));
}

TEST_F(HandlesTest, EveryFunctionOfAMemoryRefusesWhatIsNone) {
  auto* const untouched = Made<mneme_memory>(0x5a5a);
  mneme_memory* fork = untouched;
  auto* const no_snapshot = Made<mneme_snapshot>(0x5a5a);
  mneme_snapshot* snapshot = no_snapshot;
  mneme_memory_info info = MNEME_MEMORY_INFO_INIT;
  const mneme_memory_append_args append = MNEME_MEMORY_APPEND_ARGS_INIT;
  const mneme_memory_export_args exported = MNEME_MEMORY_EXPORT_ARGS_INIT;
  mneme_layer_desc layer = MNEME_LAYER_DESC_INIT;
  const mneme_memory_read_args read = MNEME_MEMORY_READ_ARGS_INIT;
  int64_t durable = 77;
  const std::string before = StateOf(memory_);
  for (mneme_memory* const memory : Bad<mneme_memory>(
           {ClosedMemory(), Other<mneme_memory>(store_), Other<mneme_memory>(card_), Other<mneme_memory>(snapshot_)})) {
    SCOPED_TRACE(::testing::Message() << memory);
    ExpectRefused(mneme_memory_fork(memory, 0, "fork", &fork), MNEME_STATUS_INVALID_ARGUMENT, "memory");
    ExpectRefused(mneme_memory_export(memory, &exported), MNEME_STATUS_INVALID_ARGUMENT, "memory");
    ExpectRefused(mneme_memory_get_info(memory, &info), MNEME_STATUS_INVALID_ARGUMENT, "memory");
    ExpectRefused(mneme_memory_get_layer(memory, 0, &layer), MNEME_STATUS_INVALID_ARGUMENT, "memory");
    ExpectRefused(mneme_memory_set_attachment(memory, "a", "b", 1, 0), MNEME_STATUS_INVALID_ARGUMENT, "memory");
    ExpectRefused(mneme_memory_get_attachment(memory, "a", nullptr, 0, nullptr, nullptr), MNEME_STATUS_INVALID_ARGUMENT,
                  "memory");
    ExpectRefused(mneme_memory_list_attachments(
                      memory, [](void*, const char*, size_t, int64_t) { return 0; }, nullptr),
                  MNEME_STATUS_INVALID_ARGUMENT, "memory");
    ExpectRefused(mneme_memory_append(memory, &append), MNEME_STATUS_INVALID_ARGUMENT, "memory");
    ExpectRefused(mneme_memory_commit(memory, MNEME_DURABILITY_BUFFERED, &durable), MNEME_STATUS_INVALID_ARGUMENT,
                  "memory");
    ExpectRefused(mneme_memory_truncate(memory, 0), MNEME_STATUS_INVALID_ARGUMENT, "memory");
    ExpectRefused(mneme_memory_evict(memory, 0), MNEME_STATUS_INVALID_ARGUMENT, "memory");
    ExpectRefused(mneme_memory_maintain(memory, nullptr, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "memory");
    ExpectRefused(mneme_snapshot_create(memory, &snapshot), MNEME_STATUS_INVALID_ARGUMENT, "memory");
    ExpectRefused(mneme_memory_read(memory, &read), MNEME_STATUS_INVALID_ARGUMENT, "memory");
    if (memory == nullptr) continue;  // in a batch: no memory; closing it is fine
    ExpectRefused(mneme_memory_close(memory), MNEME_STATUS_INVALID_ARGUMENT, "memory");
    AttendCall attend(memory);
    ExpectRefused(attend.Run(), MNEME_STATUS_INVALID_ARGUMENT, "memories[0]");
    EXPECT_TRUE(attend.OutputsUntouched());
    SearchCall search(memory);
    ExpectRefused(search.Run(), MNEME_STATUS_INVALID_ARGUMENT, "memories[0]");
    EXPECT_TRUE(search.OutputsUntouched());
    SearchCall second(memory_);
    second.memories.push_back(memory);
    second.Batch(2);
    ExpectRefused(second.Run(), MNEME_STATUS_INVALID_ARGUMENT, "memories[1]");
  }
  EXPECT_OK(mneme_memory_close(nullptr));
  EXPECT_EQ(fork, untouched);
  EXPECT_EQ(snapshot, no_snapshot);
  EXPECT_EQ(info.next_token, 0);
  EXPECT_EQ(durable, 77);
  EXPECT_TRUE(StateOf(memory_) == before);
}

TEST_F(HandlesTest, ASnapshotThatIsNoneIsRefused) {
  for (mneme_snapshot* const snapshot :
       Bad<mneme_snapshot>({ClosedSnapshot(), Other<mneme_snapshot>(store_), Other<mneme_snapshot>(card_),
                            Other<mneme_snapshot>(memory_)},
                           false)) {
    SCOPED_TRACE(::testing::Message() << snapshot);
    AttendCall attend(memory_);
    attend.snapshots[0] = snapshot;
    ExpectRefused(attend.Run(), MNEME_STATUS_INVALID_ARGUMENT, "args.snapshots[0]");
    EXPECT_TRUE(attend.OutputsUntouched());
    SearchCall search(memory_);
    search.snapshots[0] = snapshot;
    ExpectRefused(search.Run(), MNEME_STATUS_INVALID_ARGUMENT, "args.snapshots[0]");
    EXPECT_TRUE(search.OutputsUntouched());
    mneme_snapshot_release(snapshot);  // nothing happens
  }
  mneme_snapshot_release(nullptr);
  AttendCall attend(memory_);
  attend.snapshots[0] = snapshot_;
  EXPECT_OK(attend.Run());
}

TEST_F(HandlesTest, AClosedHandleStaysClosedWhenItsSlotIsUsedAgain) {
  mneme_memory* const closed = ClosedMemory();
  for (int i = 0; i < 100; ++i) {
    mneme_memory* const other = NewMemory("again");
    EXPECT_NE(other, closed);
    mneme_memory_info info = MNEME_MEMORY_INFO_INIT;
    ExpectRefused(mneme_memory_get_info(closed, &info), MNEME_STATUS_INVALID_ARGUMENT, "memory");
    EXPECT_OK(mneme_memory_close(other));
    EXPECT_OK(mneme_memory_drop(store_, "again"));
  }
}

}  // namespace
}  // namespace mneme
