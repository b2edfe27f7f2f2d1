// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>

#include "hosts/llamacpp/main/chat.h"
#include "hosts/llamacpp/main/commands.h"
#include "hosts/llamacpp/main/interruption.h"
#include "hosts/llamacpp/main/profile.h"
#include "hosts/llamacpp/main/session.h"
#include "hosts/llamacpp/main/text.h"
#include "hosts/llamacpp/main/utf8.h"
#include "hosts/llamacpp/main/window.h"

namespace mneme::llama {
namespace {

struct Arguments {
  const CLI::App* command = nullptr;
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

void CheckArguments(const Arguments& arguments) {
  const CLI::App& command = *arguments.command;
  const auto needs = [&](const char* option, bool there, const char* needed) {
    if (Given(command, option) && !there) throw UsageError(std::string(option) + " needs " + needed);
  };
  needs("--memory", !arguments.store.path.empty(), "--store");
  for (const char* option : {"--store", "--resume", "--save"}) needs(option, !arguments.memory.empty(), "--memory");
  needs("--stored-type", arguments.save, "--save");
  needs("--seed", arguments.temperature > 0.0f, "--temperature above 0");
}

// One turn: a prompt and its answer, in sequence 0 of a session.
class Turn {
 public:
  Turn(const Arguments& arguments, const llama_model* model, Session& session, const Memory* saved)
      : arguments_(arguments), model_(model), session_(session), saved_(saved) {
    if (saved != nullptr) interruption_.emplace();
  }

  // `begins`: nothing comes before it.
  void Take(bool begins) {
    const std::string prompt = CheckUtf8(arguments_.prompt, "--prompt");
    ChatTurn turn;
    if (arguments_.chat) {
      turn = MakeChatTurn(model_, prompt);
    } else {
      turn.opening = Tokenise(model_, prompt, /*special=*/false);
    }
    const llama_vocab* vocabulary = llama_model_get_vocab(model_);
    const bool marked = !turn.opening.empty() && turn.opening.front() == llama_vocab_bos(vocabulary);
    if (begins && llama_vocab_get_add_bos(vocabulary) && !marked) {
      turn.opening.insert(turn.opening.begin(), llama_vocab_bos(vocabulary));
    }
    if (turn.opening.empty()) throw Failure("the prompt is empty");
    const bool read = Read(turn.opening);
    Commit();
    if (read) {
      Answer(vocabulary);
      if (saved_ != nullptr) Read(turn.closing, /*whole=*/true);
      Commit();
    }
    if (saved_ != nullptr) SaveWindow(session_, *saved_, MNEME_DURABILITY_BUFFERED);
    std::fputs("\n", stdout);
    Report();
  }

 private:
  bool interrupted() const { return interruption_ && interruption_->requested(); }

  // Decodes block by block; false if it was interrupted before the end.
  bool Read(std::span<const llama_token> tokens, bool whole = false) {
    const auto block = static_cast<size_t>(session_.window());
    for (size_t begin = 0; begin < tokens.size(); begin += block) {
      session_.Decode(tokens.subspan(begin, std::min(block, tokens.size() - begin)), /*all_logits=*/false);
      if (!whole && interrupted()) return false;
    }
    return true;
  }

  void Answer(const llama_vocab* vocabulary) {
    const SamplerPtr sampler = MakeSampler(arguments_);
    Utf8Stream shown;
    for (int32_t i = 0; i < arguments_.predict && !interrupted(); ++i) {
      const llama_token token = llama_sampler_sample(sampler.get(), session_.context(), -1);
      if (llama_vocab_is_eog(vocabulary, token)) break;
      std::fputs(shown.Add(TokenText(model_, token)).c_str(), stdout);
      std::fflush(stdout);
      session_.Decode(std::span(&token, 1), /*all_logits=*/false);
    }
    std::fputs(shown.Finish().c_str(), stdout);
  }

  void Commit() {
    if (saved_ != nullptr) CheckEngine(mneme_memory_commit(saved_->get(), MNEME_DURABILITY_BUFFERED, &durable_));
  }

  void Report() const {
    if (saved_ == nullptr) return;
    std::fprintf(stderr, "%s now holds tokens up to %lld\n", arguments_.memory.c_str(),
                 static_cast<long long>(durable_));
    if (interrupted()) throw Failure("interrupted", 128 + interruption_->signal_number());
  }

  const Arguments& arguments_;
  const llama_model* const model_;
  Session& session_;
  const Memory* const saved_;  // null: nothing is saved
  std::optional<Interruption> interruption_;
  int64_t durable_ = 0;
};

void Run(Arguments arguments) {
  CheckArguments(arguments);
  CompleteSettings(*arguments.command, arguments.store.path, arguments.memory, &arguments.model);
  const ModelPtr model = LoadModel(arguments.model.model);
  const ThreadsPtr threads = MakeThreads(arguments.model);
  Session session(model.get(), arguments.model);
  session.Share(threads);
  std::optional<Store> store;
  std::optional<Memory> memory;
  if (!arguments.memory.empty()) {
    store.emplace(arguments.store.path, threads, arguments.save ? StoreUse::kWrite : StoreUse::kRead);
    memory.emplace(*store, arguments.memory, session, /*create=*/arguments.save, 0, arguments.store.stored_type);
    memory->CheckGiven(*arguments.command, session, 0, arguments.store.stored_type);
    if (arguments.save) KeepSettings(*memory, arguments.model);
    session.Attach(0, memory->get(), arguments.save ? MNEME_LLAMA_MODE_APPEND : MNEME_LLAMA_MODE_READ);
    if (arguments.resume) ResumeWindow(session, *memory);
  }
  Turn turn(arguments, model.get(), session, arguments.save ? &*memory : nullptr);
  turn.Take(!memory || memory->Info().next_token == 0);
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
  command->add_flag("--save", arguments->save,
                    "append prompt and answer to the memory, which is created if need be; Ctrl-C ends the answer and "
                    "keeps what is there");
  command->add_option("--predict", arguments->predict, "tokens at most")->check(AtLeast(0))->capture_default_str();
  command->add_option("--temperature", arguments->temperature, "0: the likeliest token")
      ->check(AtLeast(0))
      ->capture_default_str();
  command->add_option("--seed", arguments->seed, "of the sampling")->capture_default_str();
  arguments->command = command;
  command->callback([arguments] { Run(*arguments); });
}

}  // namespace mneme::llama
