// SPDX-License-Identifier: Apache-2.0
// Random calls of every function with good and bad values: nothing crashes, and what must hold holds. The seed is
// printed; MNEME_FUZZ_SEED chooses another and MNEME_FUZZ_CALLS lengthens the run. scripts/soak tries many.

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "tests/capi/testing.h"

namespace mneme {
namespace {

constexpr int64_t kMost = std::numeric_limits<int64_t>::max(), kLeast = std::numeric_limits<int64_t>::min();
constexpr size_t kArena = 1 << 20;  // elements; tensors start in the middle, so small strides of any sign stay inside

class Fuzzer {
 public:
  Fuzzer(uint64_t seed, const std::string& folder)
      : random_(seed), folder_(folder), in_(kArena), out_(kArena), gradients_(kArena) {
    // Both halves alike, so that the numbers are modest as f32, f16 and bf16.
    for (float& value : in_) {
      const float real = Real(-1, 1);
      uint32_t bits;
      std::memcpy(&bits, &real, sizeof(bits));
      bits = (bits >> 16) * 0x10001u;
      std::memcpy(&value, &bits, sizeof(bits));
    }
    cards_.resize(3);
    stores_.resize(2);
    memories_.resize(5);
    snapshots_.resize(4);
    OpenStore();
    NewCard();
  }

  ~Fuzzer() {
    for (mneme_snapshot* snapshot : snapshots_) mneme_snapshot_release(snapshot);
    for (mneme_memory* memory : memories_) {
      while (memory != nullptr && mneme_memory_close(memory) == MNEME_OK) continue;
    }
    for (mneme_card* card : cards_) mneme_card_release(card);
    // With nothing open any more, what is still a store closes.
    for (mneme_store* store : stores_) {
      const mneme_status status = mneme_store_close(store);
      EXPECT_TRUE(status == MNEME_OK || status == MNEME_STATUS_INVALID_ARGUMENT) << mneme_last_error();
    }
  }

  void Step() {
    struct Action {
      int weight;
      void (Fuzzer::*run)();
    };
    static constexpr Action kActions[] = {
        {1, &Fuzzer::OpenStore},   {1, &Fuzzer::CloseStore}, {4, &Fuzzer::ListStore},     {1, &Fuzzer::Verify},
        {2, &Fuzzer::Stats},       {2, &Fuzzer::Metrics},    {10, &Fuzzer::NewCard},      {20, &Fuzzer::AddLayer},
        {5, &Fuzzer::ReleaseCard}, {8, &Fuzzer::Create},     {20, &Fuzzer::OpenMemory},   {5, &Fuzzer::Fork},
        {3, &Fuzzer::Export},      {4, &Fuzzer::Import},     {6, &Fuzzer::Drop},          {5, &Fuzzer::CloseMemory},
        {60, &Fuzzer::Info},       {400, &Fuzzer::Append},   {40, &Fuzzer::Commit},       {6, &Fuzzer::Truncate},
        {6, &Fuzzer::Evict},       {3, &Fuzzer::Maintain},   {40, &Fuzzer::TakeSnapshot}, {30, &Fuzzer::Release},
        {80, &Fuzzer::Read},       {300, &Fuzzer::Attend},   {120, &Fuzzer::Search},      {60, &Fuzzer::Merge},
        {10, &Fuzzer::Library},
    };
    static const int total = [] {
      int sum = 0;
      for (const Action& action : kActions) sum += action.weight;
      return sum;
    }();
    careful_ = Below(100) < 70;
    int at = static_cast<int>(Below(total));
    for (const Action& action : kActions) {
      at -= action.weight;
      if (at < 0) return (this->*action.run)();
    }
  }

  int64_t ok() const { return ok_; }
  int64_t refused() const { return refused_; }

 private:
  // ---- random values

  int64_t Below(int64_t n) { return static_cast<int64_t>(random_() % static_cast<uint64_t>(n)); }
  bool Chance(int percent) { return Below(100) < percent; }
  // Whether to do wrong, which careful steps never mean to.
  bool Slip(int percent) { return !careful_ && Chance(percent); }
  template <typename T>
  T Pick(std::initializer_list<T> values) {
    return values.begin()[Below(static_cast<int64_t>(values.size()))];
  }
  float Real(double low, double high) {
    return static_cast<float>(low + (high - low) * static_cast<double>(random_() >> 11) / 9007199254740992.0);
  }
  float BadReal() { return Pick({std::nanf(""), INFINITY, -INFINITY, -1.0f, 0.0f, 3e38f, -3e38f, 1e-45f, 1e15f}); }
  // One of `good`, seldom something absurd.
  int64_t Number(std::initializer_list<int64_t> good) {
    if (!Slip(4)) return Pick(good);
    return Pick<int64_t>({-1, kMost, kLeast, int64_t{1} << 62, -(int64_t{1} << 62), 12345});
  }
  int32_t Small(std::initializer_list<int32_t> good) {
    if (!Slip(3)) return Pick(good);
    return Pick<int32_t>({-1, 99, std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::min()});
  }
  template <typename Handle>
  Handle* HandleOf(const std::vector<Handle*>& pool) {
    if (Slip(2)) return reinterpret_cast<Handle*>(static_cast<uintptr_t>(random_() >> Below(64)));
    if (Slip(1)) return reinterpret_cast<Handle*>(stores_[0]);
    Handle* handle = nullptr;
    for (int i = 0; i < 8 && handle == nullptr; ++i) {
      handle = pool[static_cast<size_t>(Below(static_cast<int64_t>(pool.size())))];
    }
    return handle;
  }
  const char* Name() {
    static const std::string long_name(255, 'n'), too_long(256, 'n');
    if (Slip(2)) return Pick<const char*>({nullptr, "", long_name.c_str(), too_long.c_str(), "\xff\n"});
    return Pick({"a", "b", "c", "d"});
  }
  template <typename T>
  T* Maybe(T* pointer, int percent_null) {
    // A seldom NULL is a wrong one, a frequent one an absent option.
    return (percent_null <= 5 ? Slip(percent_null) : Chance(percent_null)) ? nullptr : pointer;
  }
  // struct_size as a caller of today, seldom of another age. Never more than there is.
  template <typename Struct>
  void Age(Struct& args) {
    if (Slip(1)) args.struct_size = static_cast<size_t>(Pick<int64_t>({0, 8, 16, 24, 64, 100000, -1}));
    if (args.struct_size > sizeof(Struct) && args.struct_size < 65536) args.struct_size = sizeof(Struct);
  }

  // A tensor whose shape is truthful unless it is refused anyway.
  struct AnyTensor {
    int64_t shape[5], strides[5];
    mneme_tensor view;
  };
  const mneme_tensor* TensorOf(AnyTensor& tensor, std::vector<float>& arena, std::initializer_list<int64_t> shape,
                               int percent_null = 1) {
    if (percent_null <= 5 ? Slip(percent_null) : Chance(percent_null)) return nullptr;
    std::copy(shape.begin(), shape.end(), tensor.shape);
    tensor.view = {arena.data() + kArena / 2,          MNEME_DTYPE_F32, MNEME_DEVICE_CPU, 0,
                   static_cast<int32_t>(shape.size()), tensor.shape,    nullptr};
    if (Chance(5)) tensor.view.dtype = Pick<int32_t>({MNEME_DTYPE_F16, MNEME_DTYPE_BF16});
    if (Chance(15)) {
      int64_t n = 1;
      for (size_t i = shape.size(); i > 0; --i) {
        tensor.strides[i - 1] = n;
        n *= tensor.shape[i - 1];
      }
      if (Chance(20) && shape.size() == 3) {
        tensor.strides[0] = Below(4000) - 2000;
        tensor.strides[1] = Below(400) - 200;
      }
      tensor.view.strides = tensor.strides;
    }
    if (!Slip(4)) return &tensor.view;
    switch (Below(9)) {
      case 0: tensor.view.dtype = Small({MNEME_DTYPE_I8, 0}); break;
      case 1: tensor.view.device_type = Small({MNEME_DEVICE_CUDA, 0}); break;
      case 2: tensor.view.ndim = Small({0, 1, 2, 5}); break;
      case 3: tensor.view.shape = nullptr; break;
      case 4: tensor.view.data = nullptr; break;
      case 5: tensor.view.data = reinterpret_cast<char*>(tensor.view.data) + 1; break;
      case 6:
        tensor.shape[Below(static_cast<int64_t>(shape.size()))] = Pick({int64_t{-1}, kMost, kLeast, int64_t{1} << 45});
        break;
      case 7: tensor.shape[Below(static_cast<int64_t>(shape.size()))] = Pick<int64_t>({0, 1, 2, 3}); break;
      default:
        for (int64_t& stride : tensor.strides) stride = Pick({kMost, kLeast, int64_t{1} << 45});
        tensor.view.strides = tensor.strides;
    }
    return &tensor.view;
  }
  void Spoil(std::vector<float>& values) {
    if (Slip(3)) values[static_cast<size_t>(Below(static_cast<int64_t>(values.size())))] = BadReal();
  }

  // ---- what every call must keep

  mneme_status Seen(mneme_status status) {
    const mneme_class whose = mneme_status_classify(status);
    EXPECT_NE(whose, MNEME_CLASS_INTERNAL) << mneme_status_name(status) << ": " << mneme_last_error();
    // A reader's memory may have lost rows that the writer has dropped since.
    EXPECT_TRUE(whose != MNEME_CLASS_DATA || AnyReader()) << mneme_last_error();
    ++(status == MNEME_OK ? ok_ : refused_);
    EXPECT_TRUE(status == MNEME_OK || *mneme_last_error() != '\0');
    return status;
  }
  static bool InfoFor(mneme_memory* memory, mneme_memory_info& info) {
    info = MNEME_MEMORY_INFO_INIT;
    return memory != nullptr && mneme_memory_get_info(memory, &info) == MNEME_OK;
  }
  // Runs a call about one memory; a caller's error changes nothing of it.
  template <typename Call>
  mneme_status On(mneme_memory* memory, bool may_shrink, const Call& call) {
    mneme_memory_info before, after;
    const bool known = InfoFor(memory, before);
    const mneme_status status = Seen(call());
    if (!known || !InfoFor(memory, after)) return status;
    EXPECT_TRUE(may_shrink || after.next_token >= before.next_token) << before.next_token << " " << after.next_token;
    EXPECT_GE(after.next_token, 0);
    EXPECT_LE(after.tokens, after.next_token);
    EXPECT_GE(after.tokens, 0);
    EXPECT_LE(after.first_kept, after.next_token);
    EXPECT_TRUE(after.max_tokens == 0 || after.tokens <= after.max_tokens);
    EXPECT_LE(after.tail_tokens, after.next_token);
    EXPECT_EQ(after.bytes % std::max<int64_t>(1, after.tokens), 0);
    if (mneme_status_classify(status) == MNEME_CLASS_CALLER) {
      before.ram_bytes = after.ram_bytes = 0;
      EXPECT_EQ(std::memcmp(&before, &after, sizeof(before)), 0) << mneme_last_error();
    }
    return status;
  }
  // Whether a memory in use is of a store that is open for reading.
  bool AnyReader() {
    const std::string message = mneme_last_error();
    if (message.find("missing") == std::string::npos) return false;
    for (mneme_memory* memory : memories_) {
      mneme_memory_info info;
      if (InfoFor(memory, info) && mneme_memory_truncate(memory, info.next_token) == MNEME_STATUS_FAILED_PRECONDITION)
        return true;
    }
    return false;
  }
  template <typename Handle>
  void Put(std::vector<Handle*>& pool, Handle* handle, mneme_status (*close)(Handle*)) {
    Handle*& place = pool[static_cast<size_t>(Below(static_cast<int64_t>(pool.size())))];
    // What stands there is closed, and sometimes kept as a stale handle.
    if (place != nullptr) Seen(close(place));
    place = handle;
  }

  // ---- stores

  void OpenStore() {
    mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
    options.mode = Small({0, 0, 0, 0, 1, 2});
    options.must_exist = Small({0, 1});
    options.threads = Small({1, 1, 2});
    options.background = Small({0, 0, 1});
    options.ignore_index_blobs = Small({0, 1});
    options.ram_budget_bytes = Number({0, 0, 1, 10000});
    options.disk_budget_bytes = Number({0, 0, 0, 1 << 30});
    Age(options);
    mneme_store* store = nullptr;
    const std::string path = folder_ + Pick({"/one", "/two"});
    if (Seen(mneme_store_open(Maybe(path.c_str(), 1), Maybe(&options, 20), &store)) != MNEME_OK) return;
    mneme_store*& place = stores_[static_cast<size_t>(Below(2))];
    if (place != nullptr && mneme_store_close(place) != MNEME_OK) {
      // Something of it is open, or it was closed long ago: the new one must go.
      mneme_store_stats stats = MNEME_STORE_STATS_INIT;
      if (mneme_store_get_stats(place, &stats) == MNEME_OK) {
        Seen(mneme_store_close(store));
        return;
      }
    }
    place = store;
  }
  void CloseStore() { Seen(mneme_store_close(HandleOf(stores_))); }
  void ListStore() {
    static const mneme_memory_visitor_fn visitor = [](void* context, const char* name, int64_t tokens, int64_t bytes) {
      EXPECT_NE(name, nullptr);
      EXPECT_TRUE(tokens >= 0 && bytes >= 0);
      return static_cast<int>(--*static_cast<int64_t*>(context) < 0);
    };
    int64_t stop = Below(5);
    Seen(mneme_store_list(HandleOf(stores_), Slip(5) ? nullptr : visitor, &stop));
  }
  static int Progress(void* context, int64_t done, int64_t total) {
    EXPECT_TRUE(done >= 0 && (total == 0 || done <= total));
    return static_cast<int>(--*static_cast<int64_t*>(context) < 0);
  }
  void Verify() {
    mneme_store_verify_report report = MNEME_STORE_VERIFY_REPORT_INIT;
    int64_t stop = Chance(30) ? Below(20) : kMost;
    mneme_store* const store = HandleOf(stores_);
    const bool writer = mneme_memory_drop(store, "none") == MNEME_STATUS_NOT_FOUND;
    if (Seen(mneme_store_verify(store, Chance(50) ? nullptr : Progress, &stop, Maybe(&report, 5))) == MNEME_OK &&
        writer) {
      EXPECT_EQ(report.damaged_memories + report.damaged_values + report.damaged_indexes, 0);
    }
  }
  void Stats() {
    mneme_store_stats stats = MNEME_STORE_STATS_INIT;
    Age(stats);
    if (Seen(mneme_store_get_stats(HandleOf(stores_), Maybe(&stats, 5))) != MNEME_OK) return;
    EXPECT_GE(stats.memories, 0);
  }
  void Metrics() {
    size_t bytes = 0;
    const mneme_text_fn count = [](void* context, const char*, size_t size) { *static_cast<size_t*>(context) = size; };
    if (Seen(mneme_store_write_metrics(HandleOf(stores_), Chance(5) ? nullptr : count, &bytes)) != MNEME_OK) return;
    EXPECT_GT(bytes, 100u);
  }

  // ---- cards: two models, and whatever comes of random layers

  void NewCard() {
    mneme_card* card = nullptr;
    if (Seen(mneme_card_create(Maybe(Slip(10) ? "" : Pick({"model", "model", "other"}), 2), Maybe("f", 2), &card)) !=
        MNEME_OK)
      return;
    mneme_card*& place = cards_[static_cast<size_t>(Below(3))];
    mneme_card_release(place);
    place = card;
    for (const int32_t number : {0, 2}) {
      mneme_layer_desc layer = Layer(number);
      if (!Slip(10)) Seen(mneme_card_add_layer(card, &layer));
    }
  }
  static mneme_layer_desc Layer(int32_t number) {
    static constexpr float kFrequencies[] = {1.0f, 0.01f, 0.001f, 0.1f};
    mneme_layer_desc layer = MNEME_LAYER_DESC_INIT;
    layer.layer = number;
    layer.q_heads = 4;
    layer.kv_heads = 2;
    layer.key_dim = 8;
    layer.value_dim = 6;
    layer.scale = 0.35f;
    layer.rotary_layout = MNEME_ROTARY_INTERLEAVED;
    layer.rotary_pairs = 3;
    layer.rotary_inverse_frequencies = kFrequencies;
    return layer;
  }
  void AddLayer() {
    mneme_layer_desc layer = Layer(Small({1, 5, 6, 7}));
    switch (Below(10)) {
      case 0: layer.q_heads = Small({1, 3, 8}); break;
      case 1: layer.kv_heads = Small({1, 4, 8}); break;
      case 2: layer.key_dim = Small({6, 16}); break;
      case 3: layer.value_dim = Small({1, 16}); break;
      case 4: layer.scale = BadReal(); break;
      case 5: layer.soft_cap = BadReal(); break;
      case 6: layer.window = Small({0, 5}); break;
      case 7: layer.rotary_layout = Small({0, 1, 2}); break;
      case 8: layer.rotary_pairs = Small({0, 1, 4}); break;
      default: layer.rotary_magnitude = BadReal();
    }
    if (layer.rotary_pairs > 4 && layer.rotary_pairs <= layer.key_dim / 2) layer.rotary_pairs = 4;
    if (Chance(5)) layer.rotary_inverse_frequencies = nullptr;
    Age(layer);
    Seen(mneme_card_add_layer(HandleOf(cards_), Maybe(&layer, 3)));
  }
  void ReleaseCard() { mneme_card_release(HandleOf(cards_)); }

  // ---- memories

  void Create() {
    mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
    options.stored_dtype = Small({0, MNEME_DTYPE_F32, MNEME_DTYPE_F16, MNEME_DTYPE_BF16, MNEME_DTYPE_I8});
    options.normalise_keys = Small({0, 0, 1});
    options.keys_rotated = Small({0, 0, 1});
    options.max_tokens = Number({0, 0, 0, 10, 300, 1000});
    options.max_bytes = Number({0, 0, 0, 0, 100, 100000});
    options.pinned_tokens = Number({0, 0, 0, 4, 20});
    options.segment_tokens = Slip(10) ? 100 : Number({0, 256, 256, 512});
    options.index = Pick<const char*>(
        {nullptr, "auto", "scan", "flat", "hnsw", "ivf", "ivf,lists=2", Slip(20) ? "nonsense" : "auto"});
    Age(options);
    mneme_memory* memory = nullptr;
    if (Seen(mneme_memory_create(HandleOf(stores_), Name(), HandleOf(cards_), Maybe(&options, 10), &memory)) ==
        MNEME_OK) {
      Put(memories_, memory, mneme_memory_close);
    }
  }
  void OpenMemory() {
    mneme_memory* memory = nullptr;
    if (Seen(mneme_memory_open(HandleOf(stores_), Name(), Chance(50) ? nullptr : HandleOf(cards_),
                               Slip(1) ? nullptr : &memory)) == MNEME_OK) {
      Put(memories_, memory, mneme_memory_close);
    }
  }
  void Export() {
    const std::string path = folder_ + "/" + std::to_string(Below(3)) + ".safetensors";
    mneme_memory_export_args args = MNEME_MEMORY_EXPORT_ARGS_INIT;
    args.path = Slip(5) ? nullptr : path.c_str();
    args.overwrite = Small({0, 1, 1});
    args.max_file_bytes = Number({0, 1000, 100'000});
    Seen(mneme_memory_export(HandleOf(memories_), Maybe(&args, 2)));
  }
  void Import() {
    const std::string path = folder_ + "/" + std::to_string(Below(3)) + ".safetensors";
    mneme_memory_import_args args = MNEME_MEMORY_IMPORT_ARGS_INIT;
    args.path = Slip(5) ? nullptr : path.c_str();
    args.name = Chance(20) ? nullptr : Name();
    mneme_memory* memory = nullptr;
    if (Seen(mneme_memory_import(HandleOf(stores_), Maybe(&args, 2), &memory)) != MNEME_OK) return;
    Put(memories_, memory, mneme_memory_close);
  }
  void Fork() {
    mneme_memory* const memory = HandleOf(memories_);
    mneme_memory_info info;
    const int64_t end = InfoFor(memory, info) ? info.next_token : 0;
    mneme_memory* fork = nullptr;
    const int64_t at = Number({0, end, end / 2, end - 1, end + 1});
    // A fork commits, which the tokens that are durable show.
    if (Seen(mneme_memory_fork(memory, at, Name(), Slip(1) ? nullptr : &fork)) != MNEME_OK) return;
    mneme_memory_info forked;
    EXPECT_TRUE(InfoFor(fork, forked));
    EXPECT_EQ(forked.next_token, at);
    Put(memories_, fork, mneme_memory_close);
  }
  void Drop() { Seen(mneme_memory_drop(HandleOf(stores_), Name())); }
  void CloseMemory() {
    mneme_memory*& place = memories_[static_cast<size_t>(Below(5))];
    Seen(mneme_memory_close(place));
    if (Chance(80)) place = nullptr;  // else it stays in use, stale
  }
  void Info() {
    mneme_memory_info info = MNEME_MEMORY_INFO_INIT;
    Age(info);
    Seen(mneme_memory_get_info(HandleOf(memories_), Maybe(&info, 2)));
    mneme_layer_desc layer = MNEME_LAYER_DESC_INIT;
    Age(layer);
    Seen(mneme_memory_get_layer(HandleOf(memories_), Small({0, 1}), Maybe(&layer, 2)));
    std::vector<char> bytes(100, 'b');
    const char* const name = Chance(2) ? "a" : "b";
    Seen(mneme_memory_set_attachment(HandleOf(memories_), name, Maybe(bytes.data(), 2), static_cast<size_t>(Below(100)),
                                     Slip(1) ? Number({0}) : Below(10)));
    size_t size = 0;
    Seen(mneme_memory_get_attachment(HandleOf(memories_), name, Maybe(bytes.data(), 2), bytes.size(), Maybe(&size, 2),
                                     nullptr));
  }
  void Append() {
    mneme_memory* const memory = HandleOf(memories_);
    const int64_t n = Chance(3) ? 120 : Below(8);
    AnyTensor keys, values;
    std::vector<int64_t> positions(120);
    std::vector<int32_t> ids(120, 5);
    for (int64_t& position : positions) position = Slip(1) ? Number({0}) : Below(1000);
    const size_t spoiled = kArena / 2 + static_cast<size_t>(Below(64));
    const float saved = in_[spoiled];
    if (Slip(5)) in_[spoiled] = Pick({std::nanf(""), INFINITY, -INFINITY, 70000.0f});
    mneme_memory_append_args args = MNEME_MEMORY_APPEND_ARGS_INIT;
    args.layer = Slip(10) ? Small({1, 5}) : Small({0, 2});
    args.keys = TensorOf(keys, in_, {n, 2, 8});
    args.values = TensorOf(values, in_, {n, 2, 6});
    args.positions = Maybe(positions.data(), 90);
    args.token_ids = Maybe(ids.data(), 50);
    static const mneme_stream stream = {nullptr};
    args.stream = Slip(1) ? &stream : nullptr;
    Age(args);
    On(memory, false, [&] { return mneme_memory_append(memory, Maybe(&args, 1)); });
    in_[spoiled] = saved;
  }
  void Commit() {
    mneme_memory* const memory = HandleOf(memories_);
    const int durability = Slip(2) ? 7 : Chance(2) ? 1 : 0;
    mneme_durability given;
    std::memcpy(&given, &durability, sizeof(given));
    int64_t durable = -1;
    const mneme_status status =
        On(memory, false, [&] { return mneme_memory_commit(memory, given, Maybe(&durable, 20)); });
    mneme_memory_info info;
    if (status == MNEME_OK && InfoFor(memory, info)) {
      EXPECT_EQ(info.tokens_durable, info.next_token);
    }
  }
  void Truncate() {
    mneme_memory* const memory = HandleOf(memories_);
    mneme_memory_info info;
    const int64_t end = InfoFor(memory, info) ? info.next_token : 0;
    const int64_t at = Number({0, end, end / 2, end - 1, end - 3, end + 1});
    if (On(memory, true, [&] { return mneme_memory_truncate(memory, at); }) == MNEME_OK && InfoFor(memory, info)) {
      EXPECT_EQ(info.next_token, at);
    }
  }
  void Evict() {
    mneme_memory* const memory = HandleOf(memories_);
    mneme_memory_info info;
    const int64_t held = InfoFor(memory, info) ? info.tokens : 0;
    const int64_t keep = Number({0, held, held / 2, held - 1, held + 100});
    if (On(memory, false, [&] { return mneme_memory_evict(memory, keep); }) == MNEME_OK && InfoFor(memory, info)) {
      EXPECT_LE(info.tokens, std::max<int64_t>(keep, 0));
    }
  }
  void Maintain() {
    mneme_memory* const memory = HandleOf(memories_);
    int64_t stop = Chance(30) ? Below(3) : kMost;
    On(memory, false, [&] { return mneme_memory_maintain(memory, Chance(50) ? nullptr : Progress, &stop); });
  }
  void TakeSnapshot() {
    mneme_snapshot* snapshot = nullptr;
    if (Seen(mneme_snapshot_create(HandleOf(memories_), Slip(1) ? nullptr : &snapshot)) != MNEME_OK) return;
    mneme_snapshot*& place = snapshots_[static_cast<size_t>(Below(4))];
    mneme_snapshot_release(place);
    place = snapshot;
  }
  void Release() { mneme_snapshot_release(HandleOf(snapshots_)); }

  void Read() {
    mneme_memory* const memory = HandleOf(memories_);
    mneme_memory_info info;
    const int64_t end = InfoFor(memory, info) ? info.next_token : 0;
    const int64_t n = Below(10);
    AnyTensor keys, values;
    std::vector<int64_t> positions(10);
    std::vector<int32_t> ids(10);
    mneme_memory_read_args args = MNEME_MEMORY_READ_ARGS_INIT;
    args.layer = Small({0, 2});
    args.begin = Number({0, end - n, end / 2, end});
    args.keys = TensorOf(keys, out_, {n, 2, 8}, 20);
    args.values = TensorOf(values, out_, {n, 2, 6}, 20);
    args.positions = Maybe(positions.data(), 20);
    args.token_ids = Maybe(ids.data(), 20);
    // Without tensors only a count that is refused may differ from the arrays' size.
    args.tokens = Slip(2) ? Pick({int64_t{-1}, kMost, kLeast, int64_t{1} << 60}) : n;
    Age(args);
    On(memory, false, [&] { return mneme_memory_read(memory, Maybe(&args, 1)); });
  }

  // ---- attend, search, merge

  // Arrays that attend and search share; sizes of the greatest calls.
  struct Batch {
    static constexpr int64_t kMostRows = 8, kMostHeads = 8, kMostK = 32;
    std::vector<mneme_memory*> memories = std::vector<mneme_memory*>(4);
    std::vector<const mneme_snapshot*> snapshots = std::vector<const mneme_snapshot*>(4);
    std::vector<int64_t> query_offsets = std::vector<int64_t>(5), local_offsets = query_offsets;
    std::vector<int64_t> positions = std::vector<int64_t>(kMostRows), local_positions = positions;
    std::vector<int64_t> begin = std::vector<int64_t>(4), end = begin, mask_offsets = begin;
    std::vector<int64_t> top_k = std::vector<int64_t>(kMostHeads);
    std::vector<float> distance = std::vector<float>(kMostHeads), bias = distance, decay = distance, scale = distance,
                       gate = distance;
    std::vector<float> lse = std::vector<float>(kMostRows * kMostHeads), mass = lse;
    std::vector<float> scores = std::vector<float>(kMostRows * kMostHeads * kMostK);
    std::vector<int64_t> tokens = std::vector<int64_t>(kMostRows * kMostHeads * kMostK);
    std::vector<int32_t> statuses = std::vector<int32_t>(4);
    std::vector<uint8_t> bits = std::vector<uint8_t>(kMostRows * 4);
    size_t n = 1;
    bool spoiled = false;
  };
  void Offsets(std::vector<int64_t>& offsets, size_t n, int64_t total) {
    offsets[0] = 0;
    for (size_t i = 1; i < n; ++i) offsets[i] = std::min(total, offsets[i - 1] + Below(total + 1));
    offsets[n] = total;
    if (Slip(3)) offsets[static_cast<size_t>(Below(5))] = Number({0, 1, 2});
  }
  void Fill(Batch& batch, int64_t queries, int64_t locals) {
    batch.n = static_cast<size_t>(Chance(70) ? 1 : 1 + Below(4));
    for (mneme_memory*& memory : batch.memories) memory = Chance(3) ? nullptr : HandleOf(memories_);
    if (Chance(60)) std::fill(batch.memories.begin(), batch.memories.end(), batch.memories[0]);
    for (const mneme_snapshot*& snapshot : batch.snapshots) snapshot = Chance(60) ? nullptr : HandleOf(snapshots_);
    Offsets(batch.query_offsets, batch.n, queries);
    Offsets(batch.local_offsets, batch.n, locals);
    // Near each other or too far: a table of ages follows their span.
    for (int64_t& position : batch.positions)
      position = Slip(1) ? Pick({kMost, kLeast, int64_t{1} << 48}) : Below(2000);
    for (int64_t& position : batch.local_positions) position = Below(100);
    for (int64_t& token : batch.begin) token = Number({0, 0, 0, 10, 100});
    for (int64_t& token : batch.end) token = Number({0, 5, 1000, 100, kMost});
    for (int64_t& offset : batch.mask_offsets) offset = Number({0, 1, -1, 5});
    for (int64_t& k : batch.top_k) k = Slip(1) ? Number({0}) : Below(10);
    for (float& value : batch.distance) value = Real(-10, 500);
    for (float& value : batch.bias) value = Real(-3, 3);
    for (float& value : batch.decay) value = Real(0, 1);
    for (float& value : batch.scale) value = Real(0.1, 1);
    for (float& value : batch.gate) value = Real(-3, 3);
    for (auto* values : {&batch.distance, &batch.bias, &batch.decay, &batch.scale, &batch.gate}) {
      if (Slip(5)) {
        Spoil(*values);
        batch.spoiled = true;
      }
    }
    for (uint8_t& byte : batch.bits) byte = static_cast<uint8_t>(random_());
  }

  void Attend() {
    const int64_t queries = Chance(5) ? 0 : 1 + Below(4), locals = Below(8);
    Batch batch;
    Fill(batch, queries, locals);
    AnyTensor query, memory_query, keys, values, output;
    mneme_attend_args args = MNEME_ATTEND_ARGS_INIT;
    args.layer = Small({0, 0, 0, 2});
    args.query = TensorOf(query, in_, {queries, 4, 8});
    args.memory_query = TensorOf(memory_query, in_, {queries, 4, 8}, 60);
    args.query_offsets = Maybe(batch.query_offsets.data(), batch.n == 1 ? 50 : 3);
    args.query_positions = Maybe(batch.positions.data(), 50);
    args.query_local_positions = Maybe(batch.local_positions.data(), 20);
    if (Chance(70)) {
      args.local_keys = TensorOf(keys, in_, {locals, 2, 8});
      args.local_values = TensorOf(values, in_, {locals, 2, 6});
    }
    args.local_offsets = Maybe(batch.local_offsets.data(), batch.n == 1 ? 50 : 3);
    args.local_mask = Small({0, 1, 2, 3});
    args.mask_offsets = Maybe(batch.mask_offsets.data(), 70);
    args.mask_window = Number({1, 3, 100, kMost});
    args.mask_bits = Maybe(batch.bits.data(), 5);
    args.mask_bits_stride = Slip(5) ? Pick<int64_t>({0, -1, kMost, kLeast}) : Pick<int64_t>({1, 2, 4});
    args.snapshots = Maybe(batch.snapshots.data(), 80);
    args.memory_begin = Maybe(batch.begin.data(), 60);
    args.memory_end = Maybe(batch.end.data(), 60);
    args.position_policy = Small({0, 1, 2, 3, 4});
    args.normalise_query = Small({0, 0, 1});
    args.fusion = Small({0, 1, 2, 3});
    args.top_k = Maybe(batch.top_k.data(), 50);
    args.distance = Maybe(batch.distance.data(), 50);
    args.memory_bias = Maybe(batch.bias.data(), 50);
    args.decay = Maybe(batch.decay.data(), 50);
    args.scale = Maybe(batch.scale.data(), 50);
    args.gate = Maybe(batch.gate.data(), 50);
    args.default_top_k = Number({0, 1, 5, 100000});
    args.output = TensorOf(output, out_, {queries, 4, 6});
    args.log_sum_exp = Maybe(batch.lse.data(), 30);
    args.retrieved_tokens = Maybe(batch.tokens.data(), 40);
    args.retrieved_scores = Maybe(batch.scores.data(), 40);
    args.retrieved_stride = Slip(5) ? Pick<int64_t>({0, -1, kMost}) : Pick<int64_t>({1, 3, 16});
    args.memory_mass = Maybe(batch.mass.data(), 40);
    args.statuses = Maybe(batch.statuses.data(), 60);
    static const mneme_stream stream = {nullptr};
    args.stream = Slip(1) ? &stream : nullptr;
    Age(args);
    const size_t n = Slip(1) ? static_cast<size_t>(Pick<int64_t>({0, -1, int64_t{1} << 40})) : batch.n;
    const mneme_status status = Seen(mneme_attend(Slip(1) ? nullptr : batch.memories.data(), n, Maybe(&args, 1)));
    if (Chance(40)) AttendBackward(batch, args, queries, locals);
    if (status != MNEME_OK || batch.spoiled || args.struct_size != sizeof(args)) return;
    for (int64_t i = 0; args.memory_mass != nullptr && i < queries * 4; ++i) {
      EXPECT_TRUE(batch.mass[static_cast<size_t>(i)] >= 0 && batch.mass[static_cast<size_t>(i)] <= 1);
    }
    for (int64_t i = 0; args.log_sum_exp != nullptr && i < queries * 4; ++i) {
      EXPECT_LT(batch.lse[static_cast<size_t>(i)], INFINITY);  // nor NaN
    }
    if (output.view.dtype != MNEME_DTYPE_F32 || output.view.strides != nullptr) return;
    const auto* numbers = static_cast<const float*>(output.view.data);
    for (int64_t i = 0; i < queries * 4 * 6; ++i) EXPECT_TRUE(std::isfinite(numbers[i]));
  }

  // Of a call that may have failed, and whose report may have been changed since.
  void AttendBackward(Batch& batch, const mneme_attend_args& attend, int64_t queries, int64_t locals) {
    for (int64_t& token : batch.tokens) {
      if (Slip(1)) token = Number({-1, 0, 5, 1000, kMost, kLeast});
    }
    AnyTensor upstream, query, memory_query, keys, values;
    std::vector<float> sums(4);
    mneme_attend_backward_args args = MNEME_ATTEND_BACKWARD_ARGS_INIT;
    args.attend = Maybe(&attend, 1);
    args.output_gradient = TensorOf(upstream, in_, {queries, 4, 6});
    args.log_sum_exp_gradient = Maybe(batch.lse.data(), 60);
    args.query_gradient = TensorOf(query, gradients_, {queries, 4, 8}, 20);
    if (attend.memory_query != nullptr || Slip(3)) {
      args.memory_query_gradient = TensorOf(memory_query, gradients_, {queries, 4, 8}, 20);
    }
    if (attend.local_keys != nullptr || Slip(3)) {
      args.local_keys_gradient = TensorOf(keys, gradients_, {locals, 2, 8}, 20);
      args.local_values_gradient = TensorOf(values, gradients_, {locals, 2, 6}, 20);
    }
    args.memory_bias_gradient = Maybe(sums.data(), 50);
    args.gate_gradient = Maybe(sums.data(), 50);
    args.scale_gradient = Maybe(sums.data(), 50);
    Age(args);
    Seen(mneme_attend_backward(Slip(1) ? nullptr : batch.memories.data(), batch.n, Maybe(&args, 1)));
  }

  void Search() {
    int64_t k = 1 + Below(Batch::kMostK / 2);
    const int64_t queries = Chance(5) ? 0 : 1 + Below(4);
    Batch batch;
    Fill(batch, queries, 0);
    AnyTensor query, keys, values;
    mneme_search_args args = MNEME_SEARCH_ARGS_INIT;
    args.layer = Small({0, 0, 0, 2});
    args.query = TensorOf(query, in_, {queries, 4, 8});
    args.query_offsets = Maybe(batch.query_offsets.data(), batch.n == 1 ? 50 : 3);
    args.query_positions = Maybe(batch.positions.data(), 50);
    args.query_local_positions = Maybe(batch.local_positions.data(), 20);
    args.snapshots = Maybe(batch.snapshots.data(), 80);
    args.memory_begin = Maybe(batch.begin.data(), 60);
    args.memory_end = Maybe(batch.end.data(), 60);
    args.position_policy = Small({0, 1, 2, 3, 4});
    args.normalise_query = Small({0, 0, 1});
    args.distance = Maybe(batch.distance.data(), 50);
    args.decay = Maybe(batch.decay.data(), 50);
    args.scale = Maybe(batch.scale.data(), 50);
    args.top_k = Slip(3) ? Pick({int64_t{0}, int64_t{-1}, kMost, kLeast}) : k;
    args.tokens = Maybe(batch.tokens.data(), 1);
    args.scores = Maybe(batch.scores.data(), 30);
    args.keys = TensorOf(keys, out_, {queries, 4, k, 8}, 50);
    args.values = TensorOf(values, out_, {queries, 4, k, 6}, 50);
    Age(args);
    const mneme_status status = Seen(mneme_search(Slip(1) ? nullptr : batch.memories.data(), batch.n, Maybe(&args, 1)));
    if (status != MNEME_OK || batch.spoiled || args.struct_size != sizeof(args) || args.scores == nullptr) return;
    if (args.top_k == 0) k = 32;
    for (int64_t i = 0; i < queries * 4; ++i) {
      for (int64_t j = 1; j < k; ++j) {
        const auto at = static_cast<size_t>(i * k + j);
        EXPECT_TRUE(batch.scores[at] <= batch.scores[at - 1]) << batch.scores[at] << " " << batch.scores[at - 1];
        EXPECT_TRUE(batch.tokens[at] == -1 || batch.tokens[at - 1] >= 0);
      }
    }
  }

  void Merge() {
    const int64_t rows = Below(5);
    AnyTensor a, b, output;
    std::vector<float> a_lse(20), b_lse(20), gate(4), lse(20);
    for (auto* values : {&a_lse, &b_lse, &gate}) {
      for (float& value : *values) value = Chance(5) ? -INFINITY : Real(-5, 5);
      Spoil(*values);
    }
    mneme_merge_args args = MNEME_MERGE_ARGS_INIT;
    args.a_output = TensorOf(a, in_, {rows, 4, 6});
    args.b_output = TensorOf(b, in_, {rows, 4, 6});
    args.a_log_sum_exp = Maybe(a_lse.data(), 10);
    args.b_log_sum_exp = Maybe(b_lse.data(), 10);
    args.gate = Maybe(gate.data(), 70);
    args.output = TensorOf(output, out_, {rows, 4, 6});
    args.log_sum_exp = Maybe(lse.data(), 30);
    Age(args);
    Seen(mneme_merge(Maybe(&args, 1)));
  }

  void Library() {
    const int number = static_cast<int>(Pick<int64_t>({Below(20), -1, 1000, kMost}));
    mneme_status status;
    std::memcpy(&status, &number, sizeof(status));
    EXPECT_NE(mneme_status_name(status), nullptr);
    EXPECT_TRUE(mneme_status_classify(status) >= MNEME_CLASS_OK &&
                mneme_status_classify(status) <= MNEME_CLASS_INTERNAL);
    EXPECT_NE(mneme_version(), nullptr);
    EXPECT_EQ(mneme_abi_version(), MNEME_ABI_VERSION);
  }

  std::mt19937_64 random_;
  bool careful_ = true;
  const std::string folder_;
  std::vector<float> in_, out_, gradients_;
  std::vector<mneme_card*> cards_;
  std::vector<mneme_store*> stores_;
  std::vector<mneme_memory*> memories_;
  std::vector<mneme_snapshot*> snapshots_;
  int64_t ok_ = 0, refused_ = 0;
};

TEST(FuzzTest, RandomCallsOfEveryFunction) {
  const char* const given_seed = std::getenv("MNEME_FUZZ_SEED");
  const char* const given_calls = std::getenv("MNEME_FUZZ_CALLS");
  const uint64_t seed = given_seed != nullptr ? std::strtoull(given_seed, nullptr, 10) : 20261121;
  const int64_t calls = given_calls != nullptr ? std::atoll(given_calls) : 100000;
  // Printed at once: a crash leaves no other trace of it.
  std::printf("MNEME_FUZZ_SEED=%llu\n", static_cast<unsigned long long>(seed));
  std::fflush(stdout);
  const TempFolder folder;
  const auto begin = std::chrono::steady_clock::now();
  Fuzzer fuzzer(seed, folder.path());
  for (int64_t i = 0; i < calls && !::testing::Test::HasFailure(); ++i) {
    SCOPED_TRACE(::testing::Message() << "call " << i << " of seed " << seed);
    fuzzer.Step();
    // On a machine that is slow or sanitized, fewer calls.
    if (given_calls == nullptr && std::chrono::steady_clock::now() - begin > std::chrono::seconds(20)) break;
  }
  // The values are good often enough for the calls to mean something.
  std::printf("%lld calls worked, %lld were refused\n", static_cast<long long>(fuzzer.ok()),
              static_cast<long long>(fuzzer.refused()));
  EXPECT_GT(fuzzer.ok(), fuzzer.refused() / 4);
}

}  // namespace
}  // namespace mneme
