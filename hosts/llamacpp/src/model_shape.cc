// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/src/model_shape.h"

#include <memory>
#include <set>

#include "hosts/llamacpp/src/graph_probe.h"
#include "llama.h"

namespace mneme::llama {
namespace {

struct ContextDeleter {
  void operator()(llama_context* context) const { llama_free(context); }
};

// Tokens of the graph that is read: more than one, so that rows by heads can be told from flat ones.
constexpr int32_t kTokens = 3;
// Tokens in the cache before these, where windows are looked for.
constexpr int32_t kEarlier = 2;

std::string Metadata(const llama_model* model, const char* key, const std::string& otherwise) {
  std::string value(256, '\0');
  int32_t size = llama_model_meta_val_str(model, key, value.data(), value.size());
  if (size < 0) return otherwise;
  if (static_cast<size_t>(size) >= value.size()) {
    value.resize(static_cast<size_t>(size) + 1);
    size = llama_model_meta_val_str(model, key, value.data(), value.size());
  }
  value.resize(static_cast<size_t>(size));
  return value;
}

// A small context whose graphs are shown to a probe and not computed.
class ProbedContext {
 public:
  explicit ProbedContext(const llama_model* model) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 256;
    params.n_batch = params.n_ubatch = 32;
    params.n_threads = params.n_threads_batch = 1;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.swa_full = true;  // positions of a cache can be shifted only if all layers' are equally long
    params.cb_eval = &OnNode;
    params.cb_eval_user_data = this;
    context_.reset(llama_init_from_model(const_cast<llama_model*>(model), params));
  }

  bool made() const { return context_ != nullptr; }
  llama_memory_t cache() const { return llama_get_memory(context_.get()); }

  // Has llama.cpp build the graph of `count` more tokens; false if it does not.
  bool Build(int32_t count, GraphProbe* probe) {
    probe_ = probe;
    llama_token tokens[kTokens] = {};  // which ones does not matter
    const bool built = llama_decode(context_.get(), llama_batch_get_one(tokens, count)) == 0;
    probe_ = nullptr;
    return built;
  }

 private:
  // Asked for all nodes before any is computed; without the flag none will be.
  static bool OnNode(ggml_tensor* node, bool ask, void* self) {
    if (!ask) return true;
    node->flags &= ~GGML_TENSOR_FLAG_COMPUTE;
    if (GraphProbe* probe = static_cast<ProbedContext*>(self)->probe_; probe != nullptr) probe->Add(*node);
    return false;
  }

  std::unique_ptr<llama_context, ContextDeleter> context_;
  GraphProbe* probe_ = nullptr;
};

// Puts a token out of reach of every window and looks which layers do not see it.
Status FindWindows(const llama_model* model, ProbedContext& context, std::vector<LayerShape>* layers) {
  const int32_t window = llama_model_n_swa(model);
  if (window <= 0) return Status();
  const llama_memory_t cache = context.cache();
  llama_memory_clear(cache, /*data=*/true);
  if (!llama_memory_can_shift(cache)) return NotServed("llama.cpp cannot shift positions of this model's cache");
  if (!context.Build(kEarlier, nullptr)) return NotServed("llama.cpp does not decode this model");
  llama_memory_seq_add(cache, 0, 1, -1, window + 1);
  GraphProbe probe(kTokens);
  if (!context.Build(kTokens, &probe)) return NotServed("llama.cpp does not decode this model");
  for (const int32_t layer : probe.LayersThatSeeLess(kEarlier + kTokens)) {
    if (static_cast<size_t>(layer) < layers->size()) (*layers)[layer].window = window;
  }
  return Status();
}

Status RefuseKind(const llama_model* model) {
  if (llama_model_has_encoder(model)) return NotServed("the model has an encoder; only decoders are served");
  if (llama_model_is_diffusion(model)) return NotServed("the model's attention is not causal (diffusion)");
  if (llama_model_is_recurrent(model)) {
    return NotServed("layer 0: keeps a recurrent state and no keys; such a model has its memory in its state");
  }
  return Status();
}

}  // namespace

Status ReadModelShape(const llama_model* model, ModelShape* shape) {
  ModelShape result;
  result.architecture = Metadata(model, "general.architecture", "");
  result.name = Metadata(model, "general.name", result.architecture);
  MNEME_LLAMA_RETURN_IF_ERROR(RefuseKind(model));
  ProbedContext context(model);
  if (!context.made()) return NotServed("llama.cpp makes no context with flash attention for this model");
  GraphProbe probe(kTokens);
  if (!context.Build(kTokens, &probe)) return NotServed("llama.cpp does not decode this model");
  if (probe.has_learned_positions()) {
    return NotServed("the model's positions are a table of its trained context, beyond which it knows none");
  }
  std::map<int32_t, LayerShape> found = probe.Layers();
  for (int32_t i = 0; i < llama_model_n_layer(model); ++i) {
    if (!found.contains(i)) found[i].refusal = "it has no attention";
    result.layers.push_back(found[i]);
    if (llama_model_is_hybrid(model) && !found[i].refusal.empty()) {
      return NotServed("layer " + std::to_string(i) +
                       ": keeps a recurrent state, which llama.cpp cannot take back to an earlier token");
    }
  }
  MNEME_LLAMA_RETURN_IF_ERROR(FindWindows(model, context, &result.layers));
  *shape = std::move(result);
  return Status();
}

}  // namespace mneme::llama
