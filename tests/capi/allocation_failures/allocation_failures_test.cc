// SPDX-License-Identifier: Apache-2.0
// Every allocation of every call fails once: the call says so and changes nothing, the same call then works, and no row
// is lost.

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <ostream>
#include <set>
#include <string>
#include <vector>

#include "tests/capi/allocation_failures/failing_new.h"
#include "tests/capi/allocation_failures/model_memory.h"
#include "tests/capi/testing.h"

namespace mneme {
namespace {

// A check in a process of its own: it ends with a message about what was wrong.
#define REQUIRE(holds)                    \
  do {                                    \
    if (!(holds)) Fail(#holds, __LINE__); \
  } while (false)

// Of the fault that is being tried, for messages.
const char* trying = "";
int64_t trying_nth = 0;

[[noreturn]] void Fail(const char* expected, int line) {
  Disarm();
  std::fprintf(stderr, "%s, allocation %lld: line %d: expected %s; last error: %s\nthe failed allocation:\n", trying,
               static_cast<long long>(trying_nth), line, expected, mneme_last_error());
  PrintFailedCall();
  std::_Exit(1);
}

void OnAlarm(int) {
  static constexpr char kText[] = "a call hangs; the failed allocation:\n";
  static_cast<void>(!write(STDERR_FILENO, kText, sizeof(kText) - 1));
  PrintFailedCall();
  _exit(2);
}

mneme_memory* const kNoMemory = reinterpret_cast<mneme_memory*>(0x5a5a);
mneme_store* const kNoStore = reinterpret_cast<mneme_store*>(0x5a5a);
mneme_snapshot* const kNoSnapshot = reinterpret_cast<mneme_snapshot*>(0x5a5a);

// A store and the memories that a test makes in it.
class Host {
 public:
  explicit Host(std::string path, bool open = true) : path_(std::move(path)), card_(NewCard()) {
    if (open) OpenStore();
  }

  const std::string& path() const { return path_; }
  mneme_store* store() const { return store_; }
  mneme_card* card() const { return card_; }
  std::string NewName() { return "memory-with-a-long-name-" + std::to_string(++names_); }

  mneme_store_options StoreOptions() const {
    mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
    options.threads = 1;
    return options;
  }
  void OpenStore() {
    const mneme_store_options options = StoreOptions();
    REQUIRE(mneme_store_open(path_.c_str(), &options, &store_) == MNEME_OK);
  }
  void CloseStore() {
    REQUIRE(mneme_store_close(store_) == MNEME_OK);
    store_ = nullptr;
  }

  mneme_memory_options MemoryOptions() const {
    mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
    options.stored_dtype = MNEME_DTYPE_F32;
    options.segment_tokens = 256;
    return options;
  }
  mneme_memory* Create(const std::string& name) { return Create(name, MemoryOptions()); }
  mneme_memory* Create(const std::string& name, const mneme_memory_options& options) {
    mneme_memory* memory = nullptr;
    REQUIRE(mneme_memory_create(store_, name.c_str(), card_, &options, &memory) == MNEME_OK);
    tokens_[name] = 0;
    return memory;
  }
  mneme_memory* Open(const std::string& name) {
    mneme_memory* memory = nullptr;
    REQUIRE(mneme_memory_open(store_, name.c_str(), card_, &memory) == MNEME_OK);
    return memory;
  }
  void Close(mneme_memory*& memory) {
    REQUIRE(mneme_memory_close(memory) == MNEME_OK);
    memory = nullptr;
  }
  void Append(mneme_memory* memory, int64_t n) {
    const int64_t first = InfoOf(memory).next_token;
    for (const int32_t layer : {kLayer, kOtherLayer}) {
      REQUIRE(ModelRows(layer, first, n).AppendTo(memory) == MNEME_OK);
    }
  }
  void Commit(mneme_memory* memory, mneme_durability durability = MNEME_DURABILITY_BUFFERED) {
    REQUIRE(mneme_memory_commit(memory, durability, nullptr) == MNEME_OK);
  }
  // A closed memory of `n` committed tokens.
  std::string Stored(int64_t n, int64_t piece = 300) {
    const std::string name = NewName();
    mneme_memory* memory = Create(name);
    for (int64_t done = 0; done < n; done += piece) {
      Append(memory, std::min(piece, n - done));
      Commit(memory);
    }
    Close(memory);
    tokens_[name] = n;
    return name;
  }

  // What the store has to hold when all is done.
  void Expect(const std::string& name, int64_t next_token) { tokens_[name] = next_token; }
  void ExpectNone(const std::string& name) { tokens_.erase(name); }

  // For another process: beside the store.
  void SaveExpected() const {
    std::ofstream file(path_ + ".expected");
    for (const auto& [name, next_token] : tokens_) file << name << ' ' << next_token << '\n';
  }
  void LoadExpected() {
    std::ifstream file(path_ + ".expected");
    std::string name;
    for (int64_t next_token; file >> name >> next_token;) tokens_[name] = next_token;
  }

  // Opens the store once more and compares everything. unacknowledged: a call was refused in the middle, so what it was
  // to commit, make or drop may have been done or not.
  void CheckAll(bool unacknowledged = false) {
    if (store_ != nullptr) CloseStore();
    OpenStore();
    std::set<std::string> names;
    REQUIRE(mneme_store_list(
                store_,
                [](void* context, const char* name, int64_t, int64_t) {
                  static_cast<std::set<std::string>*>(context)->insert(name);
                  return 0;
                },
                &names) == MNEME_OK);
    for (const auto& [name, next_token] : tokens_) {
      if (names.erase(name) == 0) {
        REQUIRE(unacknowledged);
        continue;
      }
      mneme_memory* memory = Open(name);
      if (unacknowledged) {
        REQUIRE(InfoOf(memory).next_token >= next_token);
      } else {
        REQUIRE(InfoOf(memory).next_token == next_token);
      }
      const std::string wrong = WrongRows(memory);
      if (!wrong.empty()) Fail(wrong.c_str(), __LINE__);
      Close(memory);
    }
    REQUIRE(names.empty() || unacknowledged);
    mneme_store_verify_report report = MNEME_STORE_VERIFY_REPORT_INIT;
    REQUIRE(mneme_store_verify(store_, nullptr, nullptr, &report) == MNEME_OK);
    REQUIRE(report.damaged_memories == 0 && report.damaged_values == 0 && report.damaged_indexes == 0);
    CloseStore();
  }

 private:
  const std::string path_;
  mneme_card* const card_;
  mneme_store* store_ = nullptr;
  int names_ = 0;
  std::map<std::string, int64_t> tokens_;
};

// One call that is tried with failing allocations. Prepare, Call and Done run again for each of them.
class Call {
 public:
  virtual ~Call() = default;
  virtual void Prepare(Host&) {}
  virtual mneme_status Run(Host&) = 0;
  // After a call that failed: its outputs are as before, and nothing that can be seen has changed.
  virtual void CheckUntouched(Host&) {}
  // After a call that succeeded.
  virtual void Done(Host&) {}
  // After all: nothing is left open.
  virtual void Finish(Host&) {}
};

// Holds one memory open throughout.
class MemoryCall : public Call {
 public:
  void Prepare(Host& host) override {
    if (memory_ == nullptr) memory_ = host.Create(name_ = host.NewName(), Options(host));
    before_ = InfoOf(memory_).next_token;
  }
  void Done(Host& host) override { host.Expect(name_, InfoOf(memory_).next_token); }
  void Finish(Host& host) override {
    if (memory_ != nullptr) host.Close(memory_);
  }

 protected:
  virtual mneme_memory_options Options(Host& host) const { return host.MemoryOptions(); }
  // Once in a while anew, so that no list grows long.
  void Renew(Host& host, int64_t most_tokens) {
    if (InfoOf(memory_).next_token < most_tokens) return;
    host.Commit(memory_);
    host.Expect(name_, InfoOf(memory_).next_token);
    host.Close(memory_);
  }

  std::string name_;
  mneme_memory* memory_ = nullptr;
  int64_t before_ = 0;
};

class CreateCall : public Call {
 public:
  void Prepare(Host& host) override {
    name_ = host.NewName();
    memory_ = kNoMemory;
  }
  mneme_status Run(Host& host) override {
    const mneme_memory_options options = host.MemoryOptions();
    return mneme_memory_create(host.store(), name_.c_str(), host.card(), &options, &memory_);
  }
  void CheckUntouched(Host&) override { REQUIRE(memory_ == kNoMemory); }
  void Done(Host& host) override {
    host.Close(memory_);
    host.Expect(name_, 0);
  }

 private:
  std::string name_;
  mneme_memory* memory_;
};

// To a memory that is made anew when it has most_tokens.
template <int64_t kTokens>
class AppendCall : public MemoryCall {
 public:
  explicit AppendCall(int64_t most_tokens = 20 * kTokens) : most_tokens_(most_tokens) {}

  void Prepare(Host& host) override {
    MemoryCall::Prepare(host);
    Renew(host, most_tokens_);
    MemoryCall::Prepare(host);
    rows_.clear();
    for (const int32_t layer : {kLayer, kOtherLayer}) {
      rows_.push_back(std::make_unique<ModelRows>(layer, before_, kTokens));
    }
  }
  mneme_status Run(Host&) override {
    // A layer whose rows have come before the other layer's failed is not given them again.
    mneme_status status = MNEME_OK;
    for (size_t i = done_; i < rows_.size() && status == MNEME_OK; ++i) {
      status = rows_[i]->AppendTo(memory_);
      if (status == MNEME_OK) ++done_;
    }
    return status;
  }
  void CheckUntouched(Host&) override { REQUIRE(InfoOf(memory_).next_token == before_); }
  void Done(Host& host) override {
    done_ = 0;
    REQUIRE(InfoOf(memory_).next_token == before_ + kTokens);
    host.Commit(memory_);
    MemoryCall::Done(host);
  }

 private:
  std::vector<std::unique_ptr<ModelRows>> rows_;
  size_t done_ = 0;

 protected:
  const int64_t most_tokens_;
};

// In a memory that holds 300 tokens at most, and is full.
class BoundedAppendCall : public AppendCall<7> {
 public:
  BoundedAppendCall() : AppendCall(2000) {}
  void Prepare(Host& host) override {
    AppendCall::Prepare(host);
    if (InfoOf(memory_).next_token >= 300) return;
    host.Append(memory_, 300);
    AppendCall::Prepare(host);
  }

 protected:
  mneme_memory_options Options(Host& host) const override {
    mneme_memory_options options = host.MemoryOptions();
    options.max_tokens = 300;
    options.pinned_tokens = 4;
    return options;
  }
};

class FirstAppendCall : public AppendCall<300> {
 public:
  FirstAppendCall() : AppendCall(1) {}
};

template <int64_t kTokens>
class CommitCall : public MemoryCall {
 public:
  void Prepare(Host& host) override {
    MemoryCall::Prepare(host);
    Renew(host, 20 * kTokens);
    MemoryCall::Prepare(host);
    host.Append(memory_, kTokens);
    durable_ = -5;
  }
  mneme_status Run(Host&) override { return mneme_memory_commit(memory_, MNEME_DURABILITY_BUFFERED, &durable_); }
  void CheckUntouched(Host&) override { REQUIRE(durable_ == -5); }
  void Done(Host& host) override {
    REQUIRE(durable_ == before_ + kTokens);
    REQUIRE(InfoOf(memory_).next_token == before_ + kTokens);
    REQUIRE(InfoOf(memory_).tokens_durable == before_ + kTokens);
    MemoryCall::Done(host);
  }

 private:
  int64_t durable_;
};

// With an index of FAISS's, built within the commit.
class IndexCommitCall : public CommitCall<300> {
 protected:
  mneme_memory_options Options(Host& host) const override {
    mneme_memory_options options = host.MemoryOptions();
    options.index = "flat";
    return options;
  }
};

// A memory is opened and attended to for the first time, so that its rows come from the disk.
template <bool kCold>
class AttendCall : public MemoryCall {
 public:
  void Prepare(Host& host) override {
    if (name_.empty()) name_ = host.Stored(900);
    if (memory_ == nullptr) memory_ = host.Open(name_);
    output_.FillGuard();
    query_.Fill(3);
  }
  mneme_status Run(Host&) override {
    mneme_attend_args args = MNEME_ATTEND_ARGS_INIT;
    args.layer = kLayer;
    args.query = &query_.view;
    args.local_keys = &local_keys_.view;
    args.local_values = &local_values_.view;
    args.default_top_k = 8;
    args.output = &output_.view;
    return mneme_attend(&memory_, 1, &args);
  }
  void CheckUntouched(Host&) override { REQUIRE(output_.Guarded()); }
  void Done(Host& host) override {
    REQUIRE(!output_.Guarded());
    if (expected_.empty()) expected_ = output_.data;
    REQUIRE(output_.data == expected_);
    if (!kCold) return;
    host.Close(memory_);
  }

 private:
  Tensor query_{{3, kQueryHeads, kKeyDim}}, output_{{3, kQueryHeads, kValueDim}};
  Tensor local_keys_{{5, kKvHeads, kKeyDim}}, local_values_{{5, kKvHeads, kValueDim}};
  std::vector<float> expected_;
};

// The backward pass of such a call, with rows in RAM or in a memory that was only just opened.
template <bool kCold>
class AttendBackwardCall : public MemoryCall {
 public:
  void Prepare(Host& host) override {
    if (name_.empty()) name_ = host.Stored(900);
    if (memory_ == nullptr) memory_ = host.Open(name_);
    if (tokens_.empty()) Forward(host);
    gradient_.FillGuard();
    keys_gradient_.FillGuard();
  }
  mneme_status Run(Host&) override {
    mneme_attend_backward_args args = MNEME_ATTEND_BACKWARD_ARGS_INIT;
    args.attend = &attend_;
    args.output_gradient = &output_gradient_.view;
    args.query_gradient = &gradient_.view;
    args.local_keys_gradient = &keys_gradient_.view;
    return mneme_attend_backward(&memory_, 1, &args);
  }
  void CheckUntouched(Host&) override { REQUIRE(gradient_.Guarded() && keys_gradient_.Guarded()); }
  void Done(Host& host) override {
    REQUIRE(!gradient_.Guarded() && !keys_gradient_.Guarded());
    if (expected_.empty()) expected_ = gradient_.data;
    REQUIRE(gradient_.data == expected_);
    if (!kCold) return;
    host.Close(memory_);
  }

 private:
  void Forward(Host& host) {
    query_.Fill(3);
    output_gradient_.Fill(4);
    tokens_.resize(3 * kQueryHeads * 8);
    attend_.layer = kLayer;
    attend_.query = &query_.view;
    attend_.local_keys = &local_keys_.view;
    attend_.local_values = &local_values_.view;
    attend_.default_top_k = 8;
    attend_.output = &output_.view;
    attend_.retrieved_tokens = tokens_.data();
    attend_.retrieved_stride = 8;
    REQUIRE(mneme_attend(&memory_, 1, &attend_) == MNEME_OK);
    if (!kCold) return;
    host.Close(memory_);
    memory_ = host.Open(name_);
  }

  Tensor query_{{3, kQueryHeads, kKeyDim}}, output_{{3, kQueryHeads, kValueDim}};
  Tensor output_gradient_{{3, kQueryHeads, kValueDim}}, gradient_{{3, kQueryHeads, kKeyDim}};
  Tensor local_keys_{{5, kKvHeads, kKeyDim}}, local_values_{{5, kKvHeads, kValueDim}};
  Tensor keys_gradient_{{5, kKvHeads, kKeyDim}};
  std::vector<int64_t> tokens_;
  mneme_attend_args attend_ = MNEME_ATTEND_ARGS_INIT;
  std::vector<float> expected_;
};

class ReadCall : public MemoryCall {
 public:
  void Prepare(Host& host) override {
    if (name_.empty()) name_ = host.Stored(700);
    memory_ = host.Open(name_);
  }
  mneme_status Run(Host&) override {
    mneme_memory_read_args args = MNEME_MEMORY_READ_ARGS_INIT;
    args.layer = kLayer;
    args.tokens = 700;
    args.keys = &keys_.view;
    args.values = &values_.view;
    return mneme_memory_read(memory_, &args);
  }
  void Done(Host& host) override {
    const std::string wrong = WrongRows(memory_);
    if (!wrong.empty()) Fail(wrong.c_str(), __LINE__);
    host.Close(memory_);
  }

 private:
  Tensor keys_{{700, kKvHeads, kKeyDim}}, values_{{700, kKvHeads, kValueDim}};
};

class OpenCall : public MemoryCall {
 public:
  void Prepare(Host& host) override {
    if (name_.empty()) name_ = host.Stored(700);
    memory_ = kNoMemory;
  }
  mneme_status Run(Host& host) override {
    return mneme_memory_open(host.store(), name_.c_str(), host.card(), &memory_);
  }
  void CheckUntouched(Host&) override { REQUIRE(memory_ == kNoMemory); }
  void Done(Host& host) override { host.Close(memory_); }
};

class CloseCall : public MemoryCall {
 public:
  void Prepare(Host& host) override {
    memory_ = host.Create(name_ = host.NewName());
    host.Append(memory_, 20);
    host.Commit(memory_);
    host.Expect(name_, 20);
  }
  mneme_status Run(Host&) override { return mneme_memory_close(memory_); }
  void Done(Host&) override { memory_ = nullptr; }
};

class StoreOpenCall : public Call {
 public:
  void Prepare(Host& host) override {
    if (!made_) {
      for (const int64_t n : {5, 300, 800}) host.Stored(n);
      host.CloseStore();
      made_ = true;
    }
    store_ = kNoStore;
  }
  mneme_status Run(Host& host) override {
    const mneme_store_options options = host.StoreOptions();
    return mneme_store_open(host.path().c_str(), &options, &store_);
  }
  void CheckUntouched(Host&) override { REQUIRE(store_ == kNoStore); }
  void Done(Host& host) override {
    REQUIRE(mneme_store_close(store_) == MNEME_OK);
    last_ = &host;
  }

 private:
  bool made_ = false;
  mneme_store* store_;
  Host* last_ = nullptr;
};

class StoreCloseCall : public Call {
 public:
  void Prepare(Host& host) override {
    if (host.store() != nullptr) host.CloseStore();
    const mneme_store_options options = host.StoreOptions();
    REQUIRE(mneme_store_open(host.path().c_str(), &options, &store_) == MNEME_OK);
    // Something that is dropped when the store is closed.
    mneme_memory* memory = nullptr;
    const mneme_memory_options given = host.MemoryOptions();
    REQUIRE(mneme_memory_create(store_, "dropped", host.card(), &given, &memory) == MNEME_OK);
    host.Append(memory, 300);
    host.Commit(memory);
    host.Close(memory);
    REQUIRE(mneme_memory_drop(store_, "dropped") == MNEME_OK);
  }
  mneme_status Run(Host&) override { return mneme_store_close(store_); }

 private:
  mneme_store* store_;
};

// keep: tokens that stay of 900, of which the last 200 lie in the tail.
template <int64_t kKeep>
class EvictCall : public MemoryCall {
 public:
  void Prepare(Host& host) override {
    name_ = host.Stored(900, 700);
    memory_ = host.Open(name_);
    before_ = 900;
  }
  mneme_status Run(Host&) override { return mneme_memory_evict(memory_, kKeep); }
  void CheckUntouched(Host&) override {
    REQUIRE(InfoOf(memory_).next_token == 900 && InfoOf(memory_).tokens == 900);
    const std::string wrong = WrongRows(memory_);
    if (!wrong.empty()) Fail(wrong.c_str(), __LINE__);
  }
  void Done(Host& host) override {
    REQUIRE(InfoOf(memory_).tokens == kKeep && InfoOf(memory_).next_token == 900);
    const std::string wrong = WrongRows(memory_);
    if (!wrong.empty()) Fail(wrong.c_str(), __LINE__);
    host.Close(memory_);
  }
};

template <int64_t kAt>
class ForkCall : public MemoryCall {
 public:
  void Prepare(Host& host) override {
    if (memory_ == nullptr) {
      name_ = host.Stored(900, 700);
      memory_ = host.Open(name_);
    }
    fork_name_ = host.NewName();
    fork_ = kNoMemory;
  }
  mneme_status Run(Host&) override { return mneme_memory_fork(memory_, kAt, fork_name_.c_str(), &fork_); }
  void CheckUntouched(Host&) override { REQUIRE(fork_ == kNoMemory && InfoOf(memory_).next_token == 900); }
  void Done(Host& host) override {
    REQUIRE(InfoOf(fork_).next_token == kAt);
    const std::string wrong = WrongRows(fork_);
    if (!wrong.empty()) Fail(wrong.c_str(), __LINE__);
    host.Close(fork_);
    host.Expect(fork_name_, kAt);
    host.Close(memory_);
    memory_ = host.Open(name_);
  }

 private:
  std::string fork_name_;
  mneme_memory* fork_ = nullptr;
};

template <int64_t kTo>
class TruncateCall : public MemoryCall {
 public:
  void Prepare(Host& host) override {
    name_ = host.Stored(900, 700);
    memory_ = host.Open(name_);
  }
  mneme_status Run(Host&) override { return mneme_memory_truncate(memory_, kTo); }
  void CheckUntouched(Host&) override { REQUIRE(InfoOf(memory_).next_token == 900); }
  void Done(Host& host) override {
    REQUIRE(InfoOf(memory_).next_token == kTo);
    host.Append(memory_, 3);
    host.Commit(memory_);
    MemoryCall::Done(host);
    host.Close(memory_);
  }
};

class SnapshotCall : public MemoryCall {
 public:
  void Prepare(Host& host) override {
    if (memory_ == nullptr) memory_ = host.Open(name_ = host.Stored(20));
    snapshot_ = kNoSnapshot;
  }
  mneme_status Run(Host&) override { return mneme_snapshot_create(memory_, &snapshot_); }
  void CheckUntouched(Host&) override { REQUIRE(snapshot_ == kNoSnapshot); }
  void Done(Host&) override { mneme_snapshot_release(snapshot_); }

 private:
  mneme_snapshot* snapshot_;
};

class MaintainCall : public MemoryCall {
 public:
  void Prepare(Host& host) override {
    name_ = host.Stored(200);
    memory_ = host.Open(name_);
    // Forks seal the tail: many small segments to be merged.
    for (int64_t i = 0; i < 2; ++i) {
      host.Append(memory_, 270);
      const std::string fork_name = host.NewName();
      mneme_memory* fork = nullptr;
      REQUIRE(mneme_memory_fork(memory_, InfoOf(memory_).next_token, fork_name.c_str(), &fork) == MNEME_OK);
      host.Close(fork);
      REQUIRE(mneme_memory_drop(host.store(), fork_name.c_str()) == MNEME_OK);
    }
    host.Append(memory_, 10);
    before_ = InfoOf(memory_).next_token;
  }
  mneme_status Run(Host&) override { return mneme_memory_maintain(memory_, nullptr, nullptr); }
  void CheckUntouched(Host&) override { REQUIRE(InfoOf(memory_).next_token == before_); }
  void Done(Host& host) override {
    MemoryCall::Done(host);
    host.Close(memory_);
  }
};

class DropCall : public Call {
 public:
  void Prepare(Host& host) override { name_ = host.Stored(300); }
  mneme_status Run(Host& host) override { return mneme_memory_drop(host.store(), name_.c_str()); }
  void Done(Host& host) override { host.ExpectNone(name_); }

 private:
  std::string name_;
};

class DropManyCall : public Call {
 public:
  void Prepare(Host& host) override {
    for (std::string& name : names_) name = host.Stored(10);
  }
  mneme_status Run(Host& host) override {
    const char* names[] = {names_[0].c_str(), names_[1].c_str(), names_[2].c_str()};
    return mneme_memory_drop_many(host.store(), names, 3);
  }
  void Done(Host& host) override {
    for (const std::string& name : names_) host.ExpectNone(name);
  }

 private:
  std::string names_[3];
};

class StatsCall : public Call {
 public:
  void Prepare(Host& host) override {
    if (!made_) host.Stored(5);
    made_ = true;
    stats_ = MNEME_STORE_STATS_INIT;
    stats_.memories = -5;
  }
  mneme_status Run(Host& host) override { return mneme_store_get_stats(host.store(), &stats_); }
  void CheckUntouched(Host&) override { REQUIRE(stats_.memories == -5); }

 private:
  bool made_ = false;
  mneme_store_stats stats_;
};

class ExportCall : public Call {
 public:
  void Prepare(Host& host) override {
    if (memory_ == nullptr) memory_ = host.Open(host.Stored(300));
    path_ = host.path() + ".safetensors";
  }
  mneme_status Run(Host&) override {
    mneme_memory_export_args args = MNEME_MEMORY_EXPORT_ARGS_INIT;
    args.path = path_.c_str();
    return mneme_memory_export(memory_, &args);
  }
  void CheckUntouched(Host&) override { REQUIRE(access(path_.c_str(), F_OK) != 0); }
  void Done(Host& host) override {
    REQUIRE(unlink(path_.c_str()) == 0);
    host.Close(memory_);
  }

 private:
  mneme_memory* memory_ = nullptr;
  std::string path_;
};

class ImportCall : public Call {
 public:
  void Prepare(Host& host) override {
    if (path_.empty()) {
      path_ = host.path() + ".safetensors";
      mneme_memory* memory = host.Open(host.Stored(300));
      mneme_memory_export_args args = MNEME_MEMORY_EXPORT_ARGS_INIT;
      args.path = path_.c_str(), args.overwrite = 1;
      REQUIRE(mneme_memory_export(memory, &args) == MNEME_OK);
      host.Close(memory);
    }
    name_ = host.NewName();
    memory_ = nullptr;
  }
  mneme_status Run(Host& host) override {
    mneme_memory_import_args args = MNEME_MEMORY_IMPORT_ARGS_INIT;
    args.path = path_.c_str(), args.name = name_.c_str();
    return mneme_memory_import(host.store(), &args, &memory_);
  }
  void CheckUntouched(Host&) override { REQUIRE(memory_ == nullptr); }
  void Done(Host& host) override {
    host.Expect(name_, 300);
    host.Close(memory_);
  }

 private:
  std::string path_;
  std::string name_;
  mneme_memory* memory_ = nullptr;
};

class MetricsCall : public Call {
 public:
  void Prepare(Host& host) override {
    if (!made_) host.Stored(5);
    made_ = true;
    written_ = 0;
  }
  mneme_status Run(Host& host) override {
    const mneme_text_fn count = [](void* written, const char*, size_t size) { *static_cast<size_t*>(written) = size; };
    return mneme_store_write_metrics(host.store(), count, &written_);
  }
  void CheckUntouched(Host&) override { REQUIRE(written_ == 0); }
  void Done(Host&) override { REQUIRE(written_ > 0); }

 private:
  bool made_ = false;
  size_t written_ = 0;
};

class VerifyCall : public Call {
 public:
  void Prepare(Host& host) override {
    if (!made_) host.Stored(800);
    made_ = true;
    report_ = MNEME_STORE_VERIFY_REPORT_INIT;
    report_.memories = -5;
  }
  mneme_status Run(Host& host) override { return mneme_store_verify(host.store(), nullptr, nullptr, &report_); }
  void CheckUntouched(Host&) override { REQUIRE(report_.memories == -5); }
  void Done(Host&) override { REQUIRE(report_.damaged_memories == 0 && report_.damaged_indexes == 0); }

 private:
  bool made_ = false;
  mneme_store_verify_report report_;
};

struct NamedCall {
  const char* name;
  std::function<std::unique_ptr<Call>()> make;
};

template <typename T>
std::unique_ptr<Call> Make() {
  return std::make_unique<T>();
}

const NamedCall kCalls[] = {
    {"create", Make<CreateCall>},
    {"append_first", Make<FirstAppendCall>},
    {"append", Make<AppendCall<1>>},
    {"append_many", Make<AppendCall<300>>},
    {"append_bounded", Make<BoundedAppendCall>},
    {"commit", Make<CommitCall<1>>},
    {"commit_that_seals", Make<CommitCall<300>>},
    {"commit_with_index", Make<IndexCommitCall>},
    {"attend", Make<AttendCall<false>>},
    {"attend_cold", Make<AttendCall<true>>},
    {"attend_backward", Make<AttendBackwardCall<false>>},
    {"attend_backward_cold", Make<AttendBackwardCall<true>>},
    {"read", Make<ReadCall>},
    {"open", Make<OpenCall>},
    {"close", Make<CloseCall>},
    {"store_open", Make<StoreOpenCall>},
    {"store_close", Make<StoreCloseCall>},
    {"evict_few", Make<EvictCall<850>>},
    {"evict_many", Make<EvictCall<50>>},
    {"fork_in_tail", Make<ForkCall<850>>},
    {"fork_in_segment", Make<ForkCall<100>>},
    {"truncate_in_tail", Make<TruncateCall<850>>},
    {"truncate_in_segment", Make<TruncateCall<100>>},
    {"snapshot", Make<SnapshotCall>},
    {"maintain", Make<MaintainCall>},
    {"drop", Make<DropCall>},
    {"drop_many", Make<DropManyCall>},
    {"stats", Make<StatsCall>},
    {"export", Make<ExportCall>},
    {"import", Make<ImportCall>},
    {"metrics", Make<MetricsCall>},
    {"verify", Make<VerifyCall>},
};

// In a process of its own.
[[noreturn]] void TryAll(const NamedCall& named, AllocationFault fault, const std::string& folder) {
  signal(SIGALRM, OnAlarm);
  CountThisThread();
  trying = named.name;
  Host host(folder);
  const std::unique_ptr<Call> call = named.make();
  int64_t failures = 0;
  // One allocation in a few where all later ones fail, too: most of those calls end at the first.
  const int64_t step = fault.forever && std::getenv("MNEME_ALL_ALLOCATIONS") == nullptr ? 4 : 1;
  for (bool reached = true; reached; fault.nth += step) {
    alarm(60);  // a hang is a failure
    trying_nth = fault.nth;
    call->Prepare(host);
    Arm(fault);
    mneme_status status = call->Run(host);
    reached = Disarm();
    REQUIRE(status == MNEME_OK || status == MNEME_STATUS_RESOURCE_EXHAUSTED);
    if (status != MNEME_OK) {
      REQUIRE(reached);
      REQUIRE(std::string(mneme_last_error()).size() > 0);
      call->CheckUntouched(host);
      ++failures;
      REQUIRE(call->Run(host) == MNEME_OK);
    }
    call->Done(host);
  }
  trying_nth = -1;
  call->Finish(host);
  host.CheckAll();
  std::printf("%s: %lld allocations, %lld failures\n", named.name, static_cast<long long>(fault.nth - 1 - step),
              static_cast<long long>(failures));
  std::fflush(stdout);
  std::_Exit(0);
}

// How a child that tried one allocation inside RocksDB has ended.
constexpr int kWentOn = 0;    // the call succeeded, or succeeded when it was made again
constexpr int kRefused = 20;  // the store can be read and closed, but not changed any more
constexpr int kNotReached = 21;

// In a process of its own. An allocation inside RocksDB may leave its state half changed: then the store says so until
// it is opened by another process.
[[noreturn]] void TryInRocksDb(const NamedCall& named, int64_t nth, const std::string& folder) {
  signal(SIGALRM, OnAlarm);
  CountThisThread();
  trying = named.name;
  trying_nth = nth;
  alarm(20);  // a hang is a failure
  Host host(folder);
  const std::unique_ptr<Call> call = named.make();
  call->Prepare(host);
  host.SaveExpected();
  Arm({.where = AllocationFault::Where::kRocksDb, .nth = nth});
  mneme_status status = call->Run(host);
  if (!Disarm()) std::_Exit(kNotReached);
  REQUIRE(status == MNEME_OK || status == MNEME_STATUS_RESOURCE_EXHAUSTED ||
          status == MNEME_STATUS_FAILED_PRECONDITION);
  if (status != MNEME_OK) {
    call->CheckUntouched(host);
    status = call->Run(host);
    if (status != MNEME_OK) {
      // What is written may be in the log already, though the call could not say so: then it is there, or gone.
      const bool done = status == MNEME_STATUS_ALREADY_EXISTS || status == MNEME_STATUS_NOT_FOUND;
      REQUIRE(done || status == MNEME_STATUS_FAILED_PRECONDITION);
      REQUIRE(done || std::string(mneme_last_error()).find("memory ran out") != std::string::npos);
      call->Finish(host);
      if (host.store() != nullptr) host.CloseStore();
      std::_Exit(kRefused);
    }
  }
  call->Done(host);
  call->Finish(host);
  host.SaveExpected();
  if (host.store() != nullptr) host.CloseStore();
  std::_Exit(kWentOn);
}

// In a process of its own: another one has left the store.
[[noreturn]] void CheckSaved(const std::string& folder, bool unacknowledged) {
  alarm(20);
  trying = "check";
  Host host(folder, /*open=*/false);
  host.LoadExpected();
  host.CheckAll(unacknowledged);
  std::_Exit(0);
}

struct Case {
  const NamedCall* call;
  bool forever;
};

void PrintTo(const NamedCall* call, std::ostream* out) {
  *out << call->name;
}
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.call->name << (c.forever ? ", from then on" : "");
}

class AllocationFailuresTest : public ::testing::TestWithParam<Case> {};

TEST_P(AllocationFailuresTest, EachIsReportedAndTheCallCanBeMadeAgain) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers have operators new of their own";
#endif
  AllocationFault fault;
  fault.forever = GetParam().forever;
  if (const char* argument = ChildArgument(); argument != nullptr) TryAll(*GetParam().call, fault, argument);
  const TempFolder folder;
  EXPECT_EQ(WaitFor(SpawnThisTest(folder.store())), 0);
}

class RocksDbAllocationFailuresTest : public ::testing::TestWithParam<const NamedCall*> {};

TEST_P(RocksDbAllocationFailuresTest, NoneHangsOrEndsTheProcessOrLosesACommit) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers have operators new of their own";
#endif
  if (const char* argument = ChildArgument(); argument != nullptr) {
    const std::string text = argument;
    const size_t at = text.find(':');
    const int64_t nth = std::stoll(text.substr(0, at));
    if (nth <= 0) CheckSaved(text.substr(at + 1), nth < 0);
    TryInRocksDb(*GetParam(), nth, text.substr(at + 1));
  }
  std::map<int, int> ends;
  int last = -1;
  for (int64_t nth = 1; last != kNotReached; nth += 1 + nth / 16) {
    const TempFolder folder;
    last = WaitFor(SpawnThisTest(std::to_string(nth) + ":" + folder.store()));
    ++ends[last];
    if (last == kNotReached) break;
    EXPECT_TRUE(last == kWentOn || last == kRefused) << "allocation " << nth << " ended with " << last;
    EXPECT_EQ(WaitFor(SpawnThisTest((last == kRefused ? "-1:" : "0:") + folder.store())), 0)
        << "after allocation " << nth;
  }
  std::printf("%s: %d went on, %d were refused for good\n", GetParam()->name, ends[kWentOn], ends[kRefused]);
}

INSTANTIATE_TEST_SUITE_P(Calls, RocksDbAllocationFailuresTest, ::testing::ValuesIn([] {
                           std::vector<const NamedCall*> calls;
                           for (const NamedCall& call : kCalls) {
                             const std::set<std::string> guarded = {
                                 "create",       "commit", "attend_cold", "read",  "open",     "evict_few",
                                 "fork_in_tail", "drop",   "drop_many",   "stats", "maintain", "commit_that_seals"};
                             if (guarded.count(call.name) != 0) calls.push_back(&call);
                           }
                           return calls;
                         }()),
                         [](const auto& info) { return std::string(info.param->name); });

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const NamedCall& call : kCalls) {
    for (const bool forever : {false, true}) cases.push_back({&call, forever});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Calls, AllocationFailuresTest, ::testing::ValuesIn(Cases()), [](const auto& info) {
  return std::string(info.param.call->name) + (info.param.forever ? "_from_then_on" : "");
});

}  // namespace
}  // namespace mneme
