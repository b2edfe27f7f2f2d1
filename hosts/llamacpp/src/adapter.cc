// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/src/adapter.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "hosts/llamacpp/src/gguf_file.h"

namespace mneme::llama {
namespace {

Status CheckOptions(const mneme_llama_options& options) {
  if (options.position_policy < MNEME_POSITION_AS_STORED || options.position_policy > MNEME_POSITION_CLAMPED) {
    return Invalid("position_policy: unknown number " + std::to_string(options.position_policy));
  }
  if (options.fusion < MNEME_FUSION_JOINT || options.fusion > MNEME_FUSION_LOCAL_ONLY) {
    return Invalid("fusion: unknown number " + std::to_string(options.fusion));
  }
  if (options.top_k < 1) return Invalid("top_k: expected at least 1, got " + std::to_string(options.top_k));
  if (options.window < 1) return Invalid("window: expected at least 1, got " + std::to_string(options.window));
  if (options.pinned_tokens < 0) return Invalid("pinned_tokens: expected -1 (none) or more");
  if (options.restart_beyond < 1) return Invalid("restart_beyond: expected at least 1");
  if (!(options.decay >= 0.0f) || !(options.decay_beyond >= 1.0f)) {
    return Invalid("decay: expected at least 0, and decay_beyond at least 1");
  }
  if (!std::isfinite(options.distance) || !std::isfinite(options.memory_bias) || !std::isfinite(options.gate)) {
    return Invalid("distance, memory_bias, gate: must be finite");
  }
  if (options.n_layers > 0 && options.layers == nullptr) return Invalid("layers: is NULL with n_layers > 0");
  if (options.model_path == nullptr && options.weights_fingerprint == nullptr) {
    return Invalid("model_path: is NULL without a weights_fingerprint; a memory must know which weights made it");
  }
  return Status();
}

AttendSettings SettingsOf(const mneme_llama_options& options, std::vector<HeadRules> rules) {
  AttendSettings settings;
  settings.position_policy = options.position_policy;
  settings.fusion = options.fusion;
  settings.decay_beyond = options.decay_beyond;
  settings.gate = options.gate;
  settings.always_overwrite = options.always_overwrite != 0;
  settings.self_check = true;
  settings.rules = std::move(rules);
  return settings;
}

// llama.cpp shifts the cached keys of all layers alike, those without rotary embedding among them.
bool CanShiftPositions(const ModelShape& shape) {
  return std::all_of(shape.layers.begin(), shape.layers.end(),
                     [](const LayerShape& layer) { return layer.refusal.empty() && layer.rotary.dims > 0; });
}

}  // namespace

Adapter::Adapter(const llama_model* model, const mneme_llama_options& options, ModelShape shape,
                 std::vector<int32_t> layers, std::vector<HeadRules> rules, std::string fingerprint, CardPtr card)
    : model_(model),
      shape_(std::move(shape)),
      layers_(std::move(layers)),
      fingerprint_(std::move(fingerprint)),
      card_(std::move(card)),
      settings_(SettingsOf(options, std::move(rules))),
      pinned_tokens_(options.pinned_tokens),
      window_(options.window),
      restart_beyond_(CanShiftPositions(shape_) ? options.restart_beyond : std::numeric_limits<int64_t>::max()),
      step_(shape_, layers_, settings_) {}

Status Adapter::Create(const llama_model* model, const mneme_llama_options& options,
                       std::unique_ptr<Adapter>* adapter) {
  MNEME_LLAMA_RETURN_IF_ERROR(CheckOptions(options));
  std::string fingerprint;
  if (options.weights_fingerprint != nullptr) {
    fingerprint = options.weights_fingerprint;
  } else {
    MNEME_LLAMA_RETURN_IF_ERROR(ReadFingerprint(options.model_path, &fingerprint));
  }
  ModelShape shape;
  MNEME_LLAMA_RETURN_IF_ERROR(ReadModelShape(model, &shape));
  std::vector<int32_t> wanted;
  if (options.layers != nullptr) wanted.assign(options.layers, options.layers + options.n_layers);
  std::vector<int32_t> layers;
  MNEME_LLAMA_RETURN_IF_ERROR(ChooseLayers(shape, wanted, &layers));
  std::vector<HeadRules> rules;
  MNEME_LLAMA_RETURN_IF_ERROR(MakeHeadRules(options, shape, layers, &rules));
  CardPtr card;
  MNEME_LLAMA_RETURN_IF_ERROR(MakeCard(shape, fingerprint, layers, &card));
  adapter->reset(new Adapter(model, options, std::move(shape), std::move(layers), std::move(rules),
                             std::move(fingerprint), std::move(card)));
  return Status();
}

Status Adapter::FillMemoryOptions(int64_t tokens, mneme_memory_options* options) const {
  if (tokens < 0) return Invalid("tokens: must not be negative, got " + std::to_string(tokens));
  if (tokens > 0 && tokens < pinned_tokens_) {
    return Invalid("tokens: " + std::to_string(tokens) + " do not hold the " + std::to_string(pinned_tokens_) +
                   " pinned ones");
  }
  options->keys_rotated = settings_.rotated() ? 1 : 0;
  options->pinned_tokens = pinned_tokens_;
  // The window's own rows are in the memory already, and not visible yet.
  options->max_tokens = tokens == 0 ? 0 : tokens + window_;
  return Status();
}

Status Adapter::Prepare(llama_context_params* params) {
  MNEME_LLAMA_RETURN_IF_ERROR(CheckContextParams(*params, shape_, static_cast<int32_t>(window_)));
  params->cb_eval = &Adapter::OnNode;
  params->cb_eval_user_data = this;
  params->flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  window_settings_ = WindowSettings(*params, settings_.rotated());
  return Status();
}

Status Adapter::Bind(llama_context* context) {
  if (context_ != nullptr) return Refused("the adapter is bound to a context already");
  if (llama_get_model(context) != model_) return Invalid("ctx: is a context of another model");
  context_ = context;
  return Status();
}

Status Adapter::ShareThreads(SharedThreads* threads) {
  if (context_ == nullptr) return Refused("the adapter is bound to no context (mneme_llama_bind)");
  if (threads != nullptr) {
    threads->Attach(context_);
  } else if (threads_ != nullptr) {
    threads_->Detach(context_);
  }
  threads_ = threads;
  return Status();
}

// Nothing may be thrown through llama.cpp's C code.
bool Adapter::OnNode(ggml_tensor* node, bool ask, void* adapter) {
  GraphStep& step = static_cast<Adapter*>(adapter)->step_;
  try {
    if (ask) return step.Wants(*node);
    step.Computed(*node);
  } catch (...) {
    step.Fail({MNEME_STATUS_RESOURCE_EXHAUSTED, "no memory for the rows of a layer"});
  }
  return step.status().ok();
}

void Adapter::FillStats(mneme_llama_stats* stats) const {
  stats->tokens = tokens_;
  stats->decode_us = decode_us_;
  stats->capture_us = step_.capture_us();
  stats->attend_us = step_.attend_us();
  stats->append_us = step_.append_us();
  stats->checked_layers = step_.checked_layers();
  stats->largest_difference = step_.largest_difference();
}

}  // namespace mneme::llama
