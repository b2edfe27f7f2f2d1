// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/main/key_recorder.h"

#include <algorithm>
#include <cstring>

#include "hosts/llamacpp/main/failure.h"
#include "hosts/llamacpp/main/progress.h"
#include "hosts/llamacpp/main/session.h"
#include "hosts/llamacpp/src/graph_nodes.h"

namespace mneme::llama {
namespace {

// Listens to the graph of one block at a time.
class Listener {
 public:
  Listener(const ModelShape& shape, const std::vector<int32_t>& layers, const RecordingPlan& plan)
      : shape_(shape), plan_(plan), nodes_(shape, layers, /*rotated=*/false) {
    for (const int32_t number : layers) {
      const LayerShape& layer = shape.layers[number];
      LayerRecording& one = layers_.emplace_back();
      one.layer = number;
      one.keys.resize(static_cast<size_t>(plan.rows * layer.kv_heads * layer.key_dim));
      one.queries.resize(static_cast<size_t>(plan.queries * layer.q_heads * layer.key_dim));
    }
  }

  void Begin(int64_t token, int64_t tokens) {
    begin_ = token;
    tokens_ = tokens;
    copied_ = 0;
  }
  // Whether the block brought the keys and queries of every layer.
  bool Complete() const { return copied_ == 2 * layers_.size(); }

  std::vector<LayerRecording> Take() { return std::move(layers_); }

  // ggml_backend_sched_eval_callback.
  static bool OnNode(ggml_tensor* node, bool ask, void* listener) {
    auto* self = static_cast<Listener*>(listener);
    return ask ? self->Wants(*node) : self->Computed(*node);
  }

 private:
  LayerRecording* Find(int32_t number) {
    const auto found =
        std::find_if(layers_.begin(), layers_.end(), [&](const auto& one) { return one.layer == number; });
    return found == layers_.end() ? nullptr : &*found;
  }

  bool Wants(const ggml_tensor& node) {
    const NodeName name = nodes_.Find(node);
    if (name.kind != NodeKind::kQuery && name.kind != NodeKind::kKey) return false;
    if (Find(name.layer) == nullptr || node.ne[2] != tokens_) return false;
    const LayerShape& layer = shape_.layers[name.layer];
    return HasHeads(node, layer.key_dim, name.kind == NodeKind::kKey ? layer.kv_heads : layer.q_heads);
  }

  // False ends the graph: nobody needs what comes after the last layer's keys and queries.
  bool Computed(const ggml_tensor& node) {
    const NodeName name = nodes_.Find(node);
    LayerRecording* recording = Find(name.layer);
    for (int64_t i = 0; i < tokens_; ++i) {
      const int64_t token = begin_ + i;
      if (name.kind == NodeKind::kKey) {
        if (token < plan_.rows) CopyHeads(node, i, token, plan_.rows, recording->keys);
      } else if (const int64_t query = plan_.QueryOf(token); query >= 0) {
        CopyHeads(node, i, query, plan_.queries, recording->queries);
      }
    }
    ++copied_;
    return !Complete();
  }

  // Column `from` of the node becomes row `row` of `rows` of every head.
  static void CopyHeads(const ggml_tensor& node, int64_t from, int64_t row, int64_t rows, std::vector<float>& to) {
    const int64_t dim = node.ne[0];
    for (int64_t head = 0; head < node.ne[1]; ++head) {
      std::memcpy(to.data() + (head * rows + row) * dim,
                  static_cast<const char*>(node.data) + from * node.nb[2] + head * node.nb[1],
                  static_cast<size_t>(dim) * sizeof(float));
    }
  }

  const ModelShape& shape_;
  const RecordingPlan& plan_;
  const NodeTable nodes_;
  std::vector<LayerRecording> layers_;
  int64_t begin_ = 0;
  int64_t tokens_ = 0;
  size_t copied_ = 0;
};

ContextPtr ListeningContext(const llama_model* model, const ModelSettings& settings, Listener* listener) {
  llama_context_params params = WindowParams(settings);
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  params.cb_eval = &Listener::OnNode;
  params.cb_eval_user_data = listener;
  return NewContext(model, params);
}

// Keeps the first `pinned` tokens, without which models lose their footing, and the newest, `keep` in all. The newest
// move up to the pinned: positions grow no larger than the cache.
void Slide(llama_context* context, int64_t pinned, int64_t keep) {
  const llama_memory_t cache = llama_get_memory(context);
  const int64_t held = llama_memory_seq_pos_max(cache, 0) + 1;
  if (held <= keep) return;
  const auto first = static_cast<llama_pos>(pinned);
  const auto kept = static_cast<llama_pos>(pinned + held - keep);
  if (!llama_memory_can_shift(cache) || !llama_memory_seq_rm(cache, 0, first, kept)) {
    throw Failure("llama.cpp cannot slide this model's window");
  }
  llama_memory_seq_add(cache, 0, kept, -1, first - kept);
}

}  // namespace

std::vector<LayerRecording> RecordKeys(const llama_model* model, const ModelShape& shape, const ModelSettings& settings,
                                       const std::vector<int32_t>& layers, const RecordingPlan& plan,
                                       std::span<const llama_token> tokens, const std::string& title) {
  Listener listener(shape, layers, plan);
  const ContextPtr context = ListeningContext(model, settings, &listener);
  const int64_t window = settings.window;
  Progress progress(title, plan.tokens());
  for (int64_t begin = 0; begin < plan.tokens();) {
    const int64_t count = std::min(window, plan.tokens() - begin);
    const int64_t held = llama_memory_seq_pos_max(llama_get_memory(context.get()), 0) + 1;
    if (held + count > 2 * window) Slide(context.get(), settings.pinned, window);
    std::vector<int8_t> logits(static_cast<size_t>(count), 0);
    llama_batch batch =
        llama_batch_get_one(const_cast<llama_token*>(tokens.data()) + begin, static_cast<int32_t>(count));
    batch.logits = logits.data();
    listener.Begin(begin, count);
    if (llama_decode(context.get(), batch) != 0) throw Failure("llama_decode failed");
    if (!listener.Complete()) throw Failure("the model's graph does not have the queries and keys that are recorded");
    progress.Add(count);
    begin += count;
  }
  return listener.Take();
}

}  // namespace mneme::llama
