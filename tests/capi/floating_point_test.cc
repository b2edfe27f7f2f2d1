// SPDX-License-Identifier: Apache-2.0
// A host may have unmasked floating-point traps or changed rounding and denormals: no call traps, results have the same
// bits, and the host's environment is as before after each call and inside its callbacks.

#include <cfenv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "tests/capi/testing.h"

namespace mneme {
namespace {

struct Environment {
  const char* name;
  int traps;      // of FE_ALL_EXCEPT
  int rounding;   // FE_TONEAREST, …
  bool flush;     // denormals are zero, results are flushed to zero
  int flags = 0;  // sticky
};

const Environment kEnvironments[] = {
    {"invalid", FE_INVALID, FE_TONEAREST, false},
    {"division", FE_DIVBYZERO, FE_TONEAREST, false},
    {"overflow", FE_OVERFLOW, FE_TONEAREST, false},
    {"underflow", FE_UNDERFLOW, FE_TONEAREST, false},
    {"inexact", FE_INEXACT, FE_TONEAREST, false},
    {"all traps", FE_ALL_EXCEPT, FE_TONEAREST, false},
    {"up", 0, FE_UPWARD, false},
    {"down", 0, FE_DOWNWARD, false},
    {"to zero", 0, FE_TOWARDZERO, false},
    {"flush", 0, FE_TONEAREST, true},
    {"flags", 0, FE_TONEAREST, false, FE_DIVBYZERO | FE_OVERFLOW},
    {"everything", FE_ALL_EXCEPT, FE_UPWARD, true},
};

void SetFlush(bool on) {
#if defined(__x86_64__)
  unsigned mxcsr = __builtin_ia32_stmxcsr();
  mxcsr = on ? mxcsr | 0x8040u : mxcsr & ~0x8040u;
  __builtin_ia32_ldmxcsr(mxcsr);
#elif defined(__aarch64__)
  uint64_t fpcr;
  asm volatile("mrs %0, fpcr" : "=r"(fpcr));
  fpcr = on ? fpcr | (1u << 24) : fpcr & ~uint64_t{1u << 24};
  asm volatile("msr fpcr, %0" : : "r"(fpcr));
#else
  (void)on;
#endif
}

void Set(const Environment& environment) {
  fesetenv(FE_DFL_ENV);
  feclearexcept(FE_ALL_EXCEPT);
  if (environment.flags != 0) feraiseexcept(environment.flags);
  fesetround(environment.rounding);
  SetFlush(environment.flush);
#if defined(__GLIBC__)
  if (environment.traps != 0) feenableexcept(environment.traps);
#endif
}

// All that a call may not change, as text.
std::string Seen() {
  char text[160];
#if defined(__x86_64__)
  const unsigned mxcsr = __builtin_ia32_stmxcsr();
  unsigned short control, status;
  asm volatile("fnstcw %0" : "=m"(control));
  asm volatile("fnstsw %0" : "=m"(status));
  std::snprintf(text, sizeof(text), "mxcsr %04x control %04x status %04x", mxcsr, control, status & 0x7fu);
#else
  std::snprintf(text, sizeof(text), "traps %x rounding %x flags %x", fegetexcept(), fegetround(),
                fetestexcept(FE_ALL_EXCEPT));
#endif
  return text;
}

// The environment of the test while the host is inside `body`: set before each call, compared after it.
class Host {
 public:
  explicit Host(const Environment& environment) : environment_(environment) {}

  mneme_status Call(const char* name, const std::function<mneme_status()>& call) {
    Set(environment_);
    const std::string before = Seen();
    const mneme_status status = call();
    const std::string after = Seen();
    fesetenv(FE_DFL_ENV);
    EXPECT_EQ(before, after) << name << " under " << environment_.name;
    EXPECT_EQ(status, MNEME_OK) << name << " under " << environment_.name << ": " << mneme_last_error();
    return status;
  }

  // To be called from callbacks on the calling thread.
  void InCallback() {
    const std::string seen = Seen();
    fesetenv(FE_DFL_ENV);
    Environment expected = environment_;
    Set(expected);
    const std::string wanted = Seen();
    if (seen != wanted) ++wrong_callbacks;
    ++callbacks;
  }

  int callbacks = 0, wrong_callbacks = 0;

 private:
  const Environment environment_;
};

// A host's parallel-for: half of the tasks on a thread of its own, which has the host's environment, too.
void ParallelFor(void* context, size_t n, void (*task)(void* task_context, size_t i), void* task_context) {
  auto* const host = static_cast<Host*>(context);
  host->InCallback();
  std::thread other([&] {  // inherits the environment
    for (size_t i = 0; i < n / 2; ++i) task(task_context, i);
  });
  const std::string before = Seen();
  for (size_t i = n / 2; i < n; ++i) task(task_context, i);
  if (Seen() != before) ++host->wrong_callbacks;
  other.join();
}

int CountProgress(void* context, int64_t, int64_t) {
  static_cast<Host*>(context)->InCallback();
  return 0;
}

int Visit(void* context, const char*, int64_t, int64_t) {
  static_cast<Host*>(context)->InCallback();
  return 0;
}

// Every call that computes, and what it gave.
std::vector<float> Everything(const Environment& environment, const char* index, bool own_threads) {
  const TempFolder folder;
  Host host(environment);
  std::vector<float> results;
  mneme_store* store = nullptr;
  mneme_store_options store_options = MNEME_STORE_OPTIONS_INIT;
  store_options.threads = 2;
  store_options.background = 1;
  if (!own_threads) {
    store_options.parallel_for = ParallelFor;
    store_options.parallel_for_context = &host;
    store_options.parallel_for_width = 2;
  }
  host.Call("open", [&] { return mneme_store_open(folder.store().c_str(), &store_options, &store); });
  mneme_card* card = nullptr;
  host.Call("card", [&] { return mneme_card_create("model", "sha256:0", &card); });
  mneme_layer_desc desc = LayerDesc(kLayer);
  host.Call("layer", [&] { return mneme_card_add_layer(card, &desc); });
  mneme_memory* memory = nullptr;
  mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
  options.index = index;
  options.segment_tokens = 2048;
  host.Call("create", [&] { return mneme_memory_create(store, "m", card, &options, &memory); });

  constexpr int64_t kTokens = 5000;
  Tensor keys({kTokens, kKvHeads, kKeyDim}), values({kTokens, kKvHeads, kValueDim});
  keys.Fill(1);
  values.Fill(2);
  // Numbers that an unlucky rounding or flush would change.
  for (size_t i = 0; i < values.data.size(); i += 7) values.data[i] *= 1e-6f;
  mneme_memory_append_args append = MNEME_MEMORY_APPEND_ARGS_INIT;
  append.layer = kLayer;
  append.keys = &keys.view;
  append.values = &values.view;
  host.Call("append", [&] { return mneme_memory_append(memory, &append); });
  host.Call("commit", [&] { return mneme_memory_commit(memory, MNEME_DURABILITY_SYNCED, nullptr); });
  host.Call("maintain", [&] { return mneme_memory_maintain(memory, CountProgress, &host); });

  const auto keep = [&results](const std::vector<float>& more) {
    results.insert(results.end(), more.begin(), more.end());
  };
  Tensor query({3, kQueryHeads, kKeyDim}), local_keys({5, kKvHeads, kKeyDim}), local_values({5, kKvHeads, kValueDim});
  query.Fill(3);
  local_keys.Fill(4);
  local_values.Fill(5);
  for (float& x : local_values.data) x *= 1e-38f;  // products with weights are denormals
  const std::vector<float> gate(kQueryHeads, 0.7f), decay(kQueryHeads, 0.1f);
  for (const int fusion : {MNEME_FUSION_JOINT, MNEME_FUSION_GATED, MNEME_FUSION_MEMORY_ONLY, MNEME_FUSION_LOCAL_ONLY}) {
    for (const bool with_memory : {true, false}) {
      if (!with_memory && fusion == MNEME_FUSION_MEMORY_ONLY) continue;
      Tensor output({3, kQueryHeads, kValueDim});
      std::vector<float> lse(3 * kQueryHeads), mass(3 * kQueryHeads), scores(3 * kQueryHeads * 8);
      mneme_attend_args attend = MNEME_ATTEND_ARGS_INIT;
      attend.layer = kLayer;
      attend.query = &query.view;
      attend.output = &output.view;
      attend.local_keys = &local_keys.view;
      attend.local_values = &local_values.view;
      attend.fusion = fusion;
      attend.gate = gate.data();
      attend.decay = decay.data();
      attend.default_top_k = 8;
      attend.log_sum_exp = lse.data();
      attend.memory_mass = mass.data();
      attend.retrieved_scores = scores.data();
      attend.retrieved_stride = 8;
      mneme_memory* const memories[] = {with_memory ? memory : nullptr};
      std::vector<int64_t> retrieved(3 * kQueryHeads * 8);
      attend.retrieved_tokens = retrieved.data();
      host.Call("attend", [&] { return mneme_attend(memories, 1, &attend); });
      Tensor output_gradient({3, kQueryHeads, kValueDim}), query_gradient({3, kQueryHeads, kKeyDim});
      output_gradient.Fill(5);
      mneme_attend_backward_args backward = MNEME_ATTEND_BACKWARD_ARGS_INIT;
      backward.attend = &attend;
      backward.output_gradient = &output_gradient.view;
      backward.query_gradient = &query_gradient.view;
      host.Call("attend backward", [&] { return mneme_attend_backward(memories, 1, &backward); });
      keep(output.data);
      keep(lse);
      keep(mass);
      keep(scores);
    }
  }
  std::vector<int64_t> tokens(3 * kQueryHeads * 8);
  mneme_search_args search = MNEME_SEARCH_ARGS_INIT;
  search.layer = kLayer;
  search.query = &query.view;
  search.top_k = 8;
  search.tokens = tokens.data();
  std::vector<float> scores(3 * kQueryHeads * 8);
  search.scores = scores.data();
  host.Call("search", [&] { return mneme_search(&memory, 1, &search); });
  keep(scores);
  Tensor a({2, 3, 4}), b({2, 3, 4}), merged({2, 3, 4});
  a.Fill(6);
  b.Fill(7);
  const std::vector<float> a_lse(6, 1.0f), b_lse(6, 2.5f);
  mneme_merge_args merge = MNEME_MERGE_ARGS_INIT;
  merge.a_output = &a.view;
  merge.b_output = &b.view;
  merge.a_log_sum_exp = a_lse.data();
  merge.b_log_sum_exp = b_lse.data();
  merge.output = &merged.view;
  host.Call("merge", [&] { return mneme_merge(&merge); });
  keep(merged.data);
  Tensor read_values({kTokens, kKvHeads, kValueDim});
  mneme_memory_read_args read = MNEME_MEMORY_READ_ARGS_INIT;
  read.layer = kLayer;
  read.begin = 0;
  read.tokens = kTokens;
  read.values = &read_values.view;
  host.Call("read", [&] { return mneme_memory_read(memory, &read); });
  keep(read_values.data);

  mneme_memory* fork = nullptr;
  host.Call("fork", [&] { return mneme_memory_fork(memory, 3000, "fork", &fork); });
  host.Call("truncate", [&] { return mneme_memory_truncate(fork, 2900); });
  host.Call("evict", [&] { return mneme_memory_evict(fork, 100); });
  mneme_snapshot* snapshot = nullptr;
  host.Call("snapshot", [&] { return mneme_snapshot_create(memory, &snapshot); });
  host.Call("release", [&] {
    mneme_snapshot_release(snapshot);
    return MNEME_OK;
  });
  host.Call("commit fork", [&] { return mneme_memory_commit(fork, MNEME_DURABILITY_BUFFERED, nullptr); });
  const std::string file = folder.path() + "/fork.safetensors";
  mneme_memory_export_args exported = MNEME_MEMORY_EXPORT_ARGS_INIT;
  exported.path = file.c_str(), exported.progress = CountProgress, exported.context = &host;
  host.Call("export", [&] { return mneme_memory_export(fork, &exported); });
  mneme_memory_import_args imported = MNEME_MEMORY_IMPORT_ARGS_INIT;
  imported.path = file.c_str(), imported.name = "copy", imported.progress = CountProgress;
  imported.context = &host;
  mneme_memory* copy = nullptr;
  host.Call("import", [&] { return mneme_memory_import(store, &imported, &copy); });
  host.Call("close copy", [&] { return mneme_memory_close(copy); });
  host.Call("close fork", [&] { return mneme_memory_close(fork); });
  host.Call("drop", [&] { return mneme_memory_drop(store, "fork"); });
  mneme_memory_info info = MNEME_MEMORY_INFO_INIT;
  mneme_layer_desc layer = MNEME_LAYER_DESC_INIT;
  host.Call("layer", [&] { return mneme_memory_get_layer(memory, 0, &layer); });
  host.Call("info", [&] { return mneme_memory_get_info(memory, &info); });
  const char bytes[] = "bytes";
  host.Call("set attachment", [&] { return mneme_memory_set_attachment(memory, "a", bytes, sizeof(bytes), 0); });
  host.Call("attachments", [&] {
    return mneme_memory_list_attachments(
        memory,
        [](void* context, const char*, size_t, int64_t) {
          static_cast<Host*>(context)->InCallback();
          return 0;
        },
        &host);
  });
  size_t size = 0;
  host.Call("attachment", [&] { return mneme_memory_get_attachment(memory, "a", nullptr, 0, &size, nullptr); });
  mneme_store_stats stats = MNEME_STORE_STATS_INIT;
  host.Call("stats", [&] { return mneme_store_get_stats(store, &stats); });
  host.Call("metrics", [&] {
    return mneme_store_write_metrics(
        store, [](void* context, const char*, size_t) { static_cast<Host*>(context)->InCallback(); }, &host);
  });
  mneme_store_verify_report report = MNEME_STORE_VERIFY_REPORT_INIT;
  host.Call("verify", [&] { return mneme_store_verify(store, CountProgress, &host, &report); });
  host.Call("list", [&] { return mneme_store_list(store, Visit, &host); });
  host.Call("close", [&] { return mneme_memory_close(memory); });
  host.Call("card", [&] {
    mneme_card_release(card);
    return MNEME_OK;
  });
  host.Call("close store", [&] { return mneme_store_close(store); });
  EXPECT_GT(host.callbacks, 0);
  EXPECT_EQ(host.wrong_callbacks, 0) << environment.name;
  return results;
}

class FloatingPointTest : public ::testing::TestWithParam<std::tuple<const char*, bool>> {};

TEST_P(FloatingPointTest, NoCallTrapsAndAllBitsAreThoseOfTheDefaultEnvironment) {
  const auto [index, own_threads] = GetParam();
  const std::vector<float> expected = Everything({"default", 0, FE_TONEAREST, false}, index, own_threads);
  bool denormal = false;
  for (const float x : expected) denormal = denormal || std::fpclassify(x) == FP_SUBNORMAL;
  EXPECT_TRUE(denormal) << "flushing to zero would change nothing";
  for (const Environment& environment : kEnvironments) {
    const std::vector<float> found = Everything(environment, index, own_threads);
    ASSERT_EQ(found.size(), expected.size());
    EXPECT_EQ(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)), 0) << environment.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, FloatingPointTest,
                         ::testing::Combine(::testing::Values("auto", "hnsw"), ::testing::Bool()));

}  // namespace
}  // namespace mneme
