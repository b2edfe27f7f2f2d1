// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/main/session.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <map>
#include <string>

#include "hosts/llamacpp/main/default_threads.h"

namespace mneme::llama {
namespace {

void LogErrors(ggml_log_level level, const char* text, void*) {
  if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
}

// Zero would be the default; this one turns no query by a bit.
float NotZero(float distance) {
  return distance != 0.0f ? distance : std::numeric_limits<float>::min();
}

// The rules of single layers as the adapter takes them. `storage` keeps what they point to.
std::vector<mneme_llama_layer_rules> RulesOf(std::vector<LayerSettings>& storage) {
  std::vector<mneme_llama_layer_rules> rules;
  for (LayerSettings& layer : storage) {
    const size_t heads =
        std::max({layer.top_k.size(), layer.distance.size(), layer.memory_bias.size(), layer.decay.size(), size_t{1}});
    const auto widen = [&](auto& values) {
      if (values.size() == 1) values.assign(heads, values.front());
      if (!values.empty() && values.size() != heads) {
        throw UsageError("profile: layer " + std::to_string(layer.layer) + " has lists of " +
                         std::to_string(values.size()) + " and of " + std::to_string(heads) + " heads");
      }
      return values.empty() ? nullptr : values.data();
    };
    rules.push_back({layer.layer, static_cast<int32_t>(heads), widen(layer.top_k), widen(layer.distance),
                     widen(layer.memory_bias), widen(layer.decay)});
  }
  return rules;
}

mneme_llama_options OptionsOf(const ModelSettings& settings) {
  static const std::map<std::string, int32_t> policies = {{"fixed", MNEME_POSITION_FIXED_DISTANCE},
                                                          {"as-stored", MNEME_POSITION_AS_STORED},
                                                          {"window-start", MNEME_POSITION_WINDOW_START},
                                                          {"clamped", MNEME_POSITION_CLAMPED}};
  static const std::map<std::string, int32_t> fusions = {{"joint", MNEME_FUSION_JOINT},
                                                         {"memory-only", MNEME_FUSION_MEMORY_ONLY},
                                                         {"local-only", MNEME_FUSION_LOCAL_ONLY}};
  mneme_llama_options options = MNEME_LLAMA_OPTIONS_INIT;
  options.model_path = settings.model.c_str();
  options.layers = settings.layers.empty() ? nullptr : settings.layers.data();
  options.n_layers = settings.layers.size();
  options.position_policy = policies.at(settings.policy);
  options.distance = NotZero(settings.distance);
  options.top_k = settings.top_k;
  options.fusion = fusions.at(settings.fusion);
  options.memory_bias = settings.memory_bias;
  options.decay = settings.decay;
  options.decay_beyond = settings.decay_beyond;
  options.pinned_tokens = settings.pinned != 0 ? settings.pinned : -1;
  options.window = settings.window;
  return options;
}

}  // namespace

int32_t ThreadsOf(const ModelSettings& settings) {
  if (settings.threads > 0) return settings.threads;
  // Read once: the load that this process makes must not change its own answer.
  static const int32_t threads = std::min(DefaultThreads(ReadMachineUse()), GGML_MAX_N_THREADS);
  return threads;
}

ThreadsPtr MakeThreads(const ModelSettings& settings) {
  mneme_llama_threads* threads = nullptr;
  CheckAdapter(mneme_llama_threads_create(ThreadsOf(settings), nullptr, &threads));
  return ThreadsPtr(threads);
}

ModelPtr LoadModel(const std::string& path) {
  llama_log_set(&LogErrors, nullptr);
  llama_model_params params = llama_model_default_params();
  params.n_gpu_layers = 0;
  ModelPtr model(llama_model_load_from_file(path.c_str(), params));
  if (model == nullptr) throw Failure("llama.cpp cannot load " + path);
  return model;
}

llama_context_params WindowParams(const ModelSettings& settings, int32_t n_seq) {
  llama_context_params params = llama_context_default_params();
  const auto block = static_cast<uint32_t>(settings.window);
  params.n_ctx = 2 * block * static_cast<uint32_t>(n_seq);
  params.n_batch = block * static_cast<uint32_t>(n_seq);
  params.n_ubatch = block;
  params.n_seq_max = static_cast<uint32_t>(n_seq);
  params.kv_unified = true;
  params.n_threads = params.n_threads_batch = ThreadsOf(settings);
  return params;
}

ContextPtr NewContext(const llama_model* model, const llama_context_params& params) {
  ContextPtr context(llama_init_from_model(const_cast<llama_model*>(model), params));
  if (context == nullptr) throw Failure("llama.cpp cannot make a context");
  return context;
}

Session::Session(const llama_model* model, const ModelSettings& settings, int32_t n_seq)
    : model_(model), window_(settings.window) {
  mneme_llama_options options = OptionsOf(settings);
  std::vector<LayerSettings> storage = settings.rules;
  const std::vector<mneme_llama_layer_rules> rules = RulesOf(storage);
  options.rules = rules.data();
  options.n_rules = rules.size();
  mneme_llama* adapter = nullptr;
  CheckAdapter(mneme_llama_create(model, &options, &adapter));
  adapter_.reset(adapter);
  llama_context_params params = WindowParams(settings, n_seq);
  CheckAdapter(mneme_llama_prepare(adapter, &params));
  context_ = NewContext(model, params);
  CheckAdapter(mneme_llama_bind(adapter, context_.get()));
}

void Session::Share(const ThreadsPtr& threads) {
  CheckAdapter(mneme_llama_set_threads(adapter(), threads.get()));
}

void Session::Attach(llama_seq_id sequence, mneme_memory* memory, mneme_llama_mode mode) {
  llama_memory_seq_rm(llama_get_memory(context_.get()), sequence, -1, -1);
  CheckAdapter(mneme_llama_set_memory(adapter_.get(), sequence, memory, mode));
}

void Session::Detach(llama_seq_id sequence) {
  CheckAdapter(mneme_llama_set_memory(adapter_.get(), sequence, nullptr, MNEME_LLAMA_MODE_READ));
  llama_memory_seq_rm(llama_get_memory(context_.get()), sequence, -1, -1);
}

void Session::Decode(std::span<const llama_token> tokens, bool all_logits) {
  std::vector<int8_t> logits(tokens.size(), all_logits ? 1 : 0);
  logits.back() = 1;
  llama_batch batch = llama_batch_get_one(const_cast<llama_token*>(tokens.data()), static_cast<int32_t>(tokens.size()));
  batch.logits = logits.data();
  CheckAdapter(mneme_llama_decode(adapter_.get(), batch));
}

std::span<const float> Session::Logits(int32_t i) const {
  const float* logits = llama_get_logits_ith(context_.get(), i);
  if (logits == nullptr) throw Failure("llama.cpp has no logits for token " + std::to_string(i));
  const int32_t size = llama_vocab_n_tokens(llama_model_get_vocab(model_));
  return {logits, static_cast<size_t>(size)};
}

Store::Store(const std::string& path, int32_t threads, StoreUse use) {
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  options.threads = threads;
  Open(path, options, use);
}

Store::Store(const std::string& path, const ThreadsPtr& threads, StoreUse use) {
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  CheckAdapter(mneme_llama_threads_fill_store_options(threads.get(), &options));
  Open(path, options, use);
}

void Store::Open(const std::string& path, mneme_store_options options, StoreUse use) {
  if (use == StoreUse::kRead) {
    options.mode = MNEME_MODE_READ_ONLY;
    options.must_exist = 1;
  }
  const mneme_status opened = mneme_store_open(path.c_str(), &options, &store_);
  if (opened == MNEME_STATUS_NOT_FOUND) throw Failure("--store: there is no store at " + path);
  CheckEngine(opened);
}

Store::~Store() {
  if (mneme_store_close(store_) != MNEME_OK) std::fprintf(stderr, "closing the store: %s\n", mneme_last_error());
}

namespace {

int32_t StoredType(const std::string& name) {
  static const std::map<std::string, int32_t> types = {
      {"f32", MNEME_DTYPE_F32}, {"f16", MNEME_DTYPE_F16}, {"bf16", MNEME_DTYPE_BF16}, {"i8", MNEME_DTYPE_I8}};
  return types.at(name);
}

}  // namespace

Memory::Memory(const Store& store, const std::string& name, const Session& session, bool create, int64_t tokens,
               const std::string& stored_type) {
  const mneme_card* card = mneme_llama_get_card(session.adapter());
  const mneme_status opened = mneme_memory_open(store.get(), name.c_str(), card, &memory_);
  if (opened == MNEME_OK) return;
  if (opened != MNEME_STATUS_NOT_FOUND || !create) CheckEngine(opened);
  mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
  CheckAdapter(mneme_llama_fill_memory_options(session.adapter(), tokens, &options));
  options.stored_dtype = StoredType(stored_type);
  CheckEngine(mneme_memory_create(store.get(), name.c_str(), card, &options, &memory_));
  created_ = true;
}

void Memory::CheckGiven(const CLI::App& command, const Session& session, int64_t tokens,
                        const std::string& stored_type) const {
  if (created_) return;
  const mneme_memory_info info = Info();
  mneme_memory_options wanted = MNEME_MEMORY_OPTIONS_INIT;
  CheckAdapter(mneme_llama_fill_memory_options(session.adapter(), tokens, &wanted));
  const auto refuse = [&](const char* option, const std::string& is) {
    if (Given(command, option)) {
      throw UsageError(std::string(option) + ": is for new memories, and this one is there and differs (" + is + ")");
    }
  };
  const auto bound = [](int64_t most) {
    return most == 0 ? std::string("unbounded") : std::to_string(most) + " tokens with its window";
  };
  if (wanted.max_tokens != info.max_tokens) {
    refuse("--memory-tokens", "it is " + bound(info.max_tokens) + ", not " + bound(wanted.max_tokens));
  }
  if (wanted.pinned_tokens != info.pinned_tokens) {
    refuse("--pinned", std::to_string(info.pinned_tokens) + " tokens are pinned");
  }
  if (!stored_type.empty() && StoredType(stored_type) != info.stored_dtype) {
    refuse("--stored-type", "its rows have another type");
  }
}

Memory::~Memory() {
  if (mneme_memory_close(memory_) != MNEME_OK) std::fprintf(stderr, "closing the memory: %s\n", mneme_last_error());
}

mneme_memory_info Memory::Info() const {
  mneme_memory_info info = MNEME_MEMORY_INFO_INIT;
  CheckEngine(mneme_memory_get_info(memory_, &info));
  return info;
}

}  // namespace mneme::llama
