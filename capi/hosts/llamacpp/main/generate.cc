#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>

#include "capi/hosts/llamacpp/main/commands.h"
#include "capi/hosts/llamacpp/main/session.h"
#include "capi/hosts/llamacpp/main/text.h"

namespace mneme::llama {
namespace {

struct Arguments {
  ModelSettings model;
  StoreSettings store;
  std::string memory;
  std::string prompt;
  bool chat = false;
  bool resume = false;
  bool save = false;
  int32_t predict = 128;
  float temperature = 0.0f;
  uint32_t seed = 1;
};

struct SamplerDeleter {
  void operator()(llama_sampler* sampler) const { llama_sampler_free(sampler); }
};
using SamplerPtr = std::unique_ptr<llama_sampler, SamplerDeleter>;

SamplerPtr MakeSampler(const Arguments& arguments) {
  SamplerPtr chain(llama_sampler_chain_init(llama_sampler_chain_default_params()));
  if (arguments.temperature > 0.0f) {
    llama_sampler_chain_add(chain.get(), llama_sampler_init_top_p(0.95f, 1));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_temp(arguments.temperature));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_dist(arguments.seed));
  } else {
    llama_sampler_chain_add(chain.get(), llama_sampler_init_greedy());
  }
  return chain;
}

std::vector<llama_token> PromptTokens(const Arguments& arguments, const llama_model* model) {
  if (!arguments.chat) return Tokenise(model, arguments.prompt, /*special=*/true);
  const char* chat_template = llama_model_chat_template(model, nullptr);
  if (chat_template == nullptr) throw Failure("the model brings no chat template; leave --chat out");
  const llama_chat_message message = {"user", arguments.prompt.c_str()};
  std::string text(arguments.prompt.size() + 4096, '\0');
  const int32_t size = llama_chat_apply_template(chat_template, &message, 1, /*add_ass=*/true, text.data(),
                                                 static_cast<int32_t>(text.size()));
  if (size < 0 || static_cast<size_t>(size) > text.size()) throw Failure("the model's chat template is not one known");
  text.resize(static_cast<size_t>(size));
  return Tokenise(model, text, /*special=*/true);
}

void Run(const Arguments& arguments) {
  const ModelPtr model = LoadModel(arguments.model.model);
  const llama_vocab* vocabulary = llama_model_get_vocab(model.get());
  const ThreadsPtr threads = MakeThreads(arguments.model);
  Session session(model.get(), arguments.model);
  session.Share(threads);
  std::optional<Store> store;
  std::optional<Memory> memory;
  if (!arguments.memory.empty()) {
    if (arguments.store.path.empty()) throw Failure("--memory needs --store");
    store.emplace(arguments.store.path, threads);
    memory.emplace(*store, arguments.memory, session, /*create=*/arguments.save, 0, arguments.store.stored_type);
    const bool append = arguments.save || arguments.resume;
    session.Attach(0, memory->get(), append ? MNEME_LLAMA_APPEND : MNEME_LLAMA_READ);
    if (arguments.resume) CheckAdapter(mneme_llama_resume(session.adapter(), 0, session.window()));
  }

  std::vector<llama_token> tokens = PromptTokens(arguments, model.get());
  const bool begins = !memory || memory->Info().next_token == 0;
  if (begins && llama_vocab_get_add_bos(vocabulary)) tokens.insert(tokens.begin(), llama_vocab_bos(vocabulary));
  if (tokens.empty()) throw Failure("the prompt is empty");
  for (size_t begin = 0; begin < tokens.size(); begin += static_cast<size_t>(session.window())) {
    const size_t count = std::min(static_cast<size_t>(session.window()), tokens.size() - begin);
    session.Decode(std::span(tokens).subspan(begin, count), /*all_logits=*/false);
  }
  const SamplerPtr sampler = MakeSampler(arguments);
  for (int32_t i = 0; i < arguments.predict; ++i) {
    const llama_token token = llama_sampler_sample(sampler.get(), session.context(), -1);
    if (llama_vocab_is_eog(vocabulary, token)) break;
    std::fputs(TokenText(model.get(), token).c_str(), stdout);
    std::fflush(stdout);
    session.Decode(std::span(&token, 1), /*all_logits=*/false);
  }
  std::fputs("\n", stdout);
  if (arguments.save) {
    int64_t durable = 0;
    CheckEngine(mneme_commit(memory->get(), MNEME_BUFFERED, &durable));
    std::fprintf(stderr, "%s now holds tokens up to %lld\n", arguments.memory.c_str(), static_cast<long long>(durable));
  }
}

}  // namespace

void AddGenerate(CLI::App& program) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = program.add_subcommand("generate", "Continue a prompt, with a memory attached.");
  AddModelOptions(command, &arguments->model);
  AddStoreOptions(command, &arguments->store, /*required=*/false);
  command->add_option("--memory", arguments->memory, "name of the memory; none: the model alone");
  command->add_option("--prompt", arguments->prompt, "text to continue")->required();
  command->add_flag("--chat", arguments->chat, "put the prompt into the model's chat template");
  command->add_flag("--resume", arguments->resume, "go on right after the memory's last token");
  command->add_flag("--save", arguments->save, "append prompt and answer to the memory, which is created if need be");
  command->add_option("--predict", arguments->predict, "tokens at most")->capture_default_str();
  command->add_option("--temperature", arguments->temperature, "0: the likeliest token")->capture_default_str();
  command->add_option("--seed", arguments->seed, "of the sampling")->capture_default_str();
  command->callback([arguments] { Run(*arguments); });
}

}  // namespace mneme::llama
