// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/src/model_shape.h"

#include <cmath>
#include <cstdlib>
#include <map>

#include "llama.h"

namespace mneme::llama {
namespace {

// How llama.cpp builds the attention of an architecture that the adapter serves.
struct Architecture {
  bool halves;               // rotary pairs
  bool normed;               // see ModelShape
  int32_t global_every;      // every n-th layer is global where the model has a sliding window; 0: no windows
  float window_rotary_base;  // of sliding-window layers, where the model does not say
};

const std::map<std::string, Architecture>& Served() {
  static const auto* served = new std::map<std::string, Architecture>{
      {"llama", {false, false, 0, 0.0f}},
      {"gemma3", {true, true, 6, 10000.0f}},
  };
  return *served;
}

// Why a well-known architecture is not served.
std::string ReasonAgainst(const std::string& architecture) {
  static const auto* reasons = new std::map<std::string, std::string>{
      {"gpt-oss", "its attention has sinks as weights, which no memory row may replace"},
      {"deepseek2", "it uses multi-head latent attention (MLA) with absorbed matrices"},
      {"minicpm3", "it uses multi-head latent attention (MLA)"},
  };
  const auto found = reasons->find(architecture);
  if (found != reasons->end()) return found->second;
  std::string names;
  for (const auto& [name, unused] : Served()) names += (names.empty() ? "" : ", ") + name;
  return "it is not one of those that the adapter knows: " + names;
}

// Typed reading of one architecture's keys. The first failure is kept and the rest answers 0.
class Reader {
 public:
  Reader(const MetadataLookup& lookup, std::string architecture)
      : lookup_(lookup), prefix_(std::move(architecture) + ".") {}

  bool Has(const std::string& key) const { return lookup_(prefix_ + key).has_value(); }
  std::string Text(const std::string& key) const { return lookup_(prefix_ + key).value_or(""); }

  double Number(const std::string& key, std::optional<double> otherwise = std::nullopt) {
    const std::optional<std::string> text = lookup_(prefix_ + key);
    if (!text) {
      // Lists, as models with unequal heads have them, are not handed out as text.
      if (!otherwise && status_.ok()) {
        status_ = NotServed("the model's metadata has no single number for " + prefix_ + key);
      }
      return otherwise.value_or(0.0);
    }
    char* end = nullptr;
    const double value = std::strtod(text->c_str(), &end);
    if ((end == text->c_str() || *end != '\0') && status_.ok()) {
      status_ =
          NotServed("the model's metadata has " + prefix_ + key + " = '" + *text + "' where a number is expected");
    }
    return value;
  }
  int32_t Integer(const std::string& key, std::optional<double> otherwise = std::nullopt) {
    return static_cast<int32_t>(Number(key, otherwise));
  }

  const Status& status() const { return status_; }

 private:
  const MetadataLookup& lookup_;
  const std::string prefix_;
  Status status_;
};

// The linear factor by which positions of global layers are multiplied.
Status ReadRotaryScale(Reader& reader, float* scale) {
  const std::string type = reader.Text("rope.scaling.type");
  if (!type.empty() && type != "none" && type != "linear") {
    return NotServed("rotary scaling of type '" + type + "' is not served, only none and linear");
  }
  double factor = reader.Number("rope.scaling.factor", 0.0);
  if (factor == 0.0) factor = reader.Number("rope.scale_linear", 0.0);
  *scale = type == "none" || factor == 0.0 ? 1.0f : static_cast<float>(1.0 / factor);
  return Status();
}

std::optional<std::string> ModelMetadata(const llama_model* model, const std::string& key) {
  std::string value(64, '\0');
  int32_t size = llama_model_meta_val_str(model, key.c_str(), value.data(), value.size());
  if (size < 0) return std::nullopt;
  if (static_cast<size_t>(size) >= value.size()) {
    value.resize(static_cast<size_t>(size) + 1);
    size = llama_model_meta_val_str(model, key.c_str(), value.data(), value.size());
  }
  value.resize(static_cast<size_t>(size));
  return value;
}

// What global layers have in common: heads, dims, scale and rotary settings. `layers`, `width`: of the model.
Status ReadGlobalLayer(Reader& reader, const std::string& architecture, const std::vector<float>& rope_divisors,
                       int32_t layers, int32_t width, LayerShape* layer) {
  layer->q_heads = reader.Integer("attention.head_count");
  MNEME_LLAMA_RETURN_IF_ERROR(reader.status());
  if (layers < 1 || width < 1 || layer->q_heads < 1) {
    return NotServed("the model's metadata has no layers, width or heads");
  }
  layer->kv_heads = reader.Integer("attention.head_count_kv", layer->q_heads);
  layer->key_dim = reader.Integer("attention.key_length", width / layer->q_heads);
  layer->value_dim = reader.Integer("attention.value_length", width / layer->q_heads);
  layer->scale = static_cast<float>(reader.Number("attention.scale", 0.0));
  if (layer->scale == 0.0f) layer->scale = 1.0f / std::sqrt(static_cast<float>(layer->key_dim));
  // Gemma 3 27B scales by its width a head, which is not its key dim (llama.cpp, gemma3).
  if (architecture == "gemma3" && layers == 62) {
    layer->scale = 1.0f / std::sqrt(static_cast<float>(width / layer->q_heads));
  }
  layer->rotary.dims = reader.Integer("rope.dimension_count", layer->key_dim);
  layer->rotary.base = static_cast<float>(reader.Number("rope.freq_base", 10000.0));
  layer->rotary.divisors = rope_divisors;
  return reader.status();
}

Status CheckLayer(const LayerShape& layer) {
  if (layer.kv_heads < 1 || layer.q_heads % layer.kv_heads != 0 || layer.key_dim < 2 || layer.value_dim < 1 ||
      layer.rotary.dims < 2 || layer.rotary.dims > layer.key_dim) {
    return NotServed("the model's metadata has heads or dims that do not fit together");
  }
  if (!layer.rotary.divisors.empty() && layer.rotary.divisors.size() != static_cast<size_t>(layer.rotary.dims) / 2) {
    return NotServed("the model's rotary factors do not fit its rotary dims");
  }
  return Status();
}

}  // namespace

Status ReadModelShape(const llama_model* model, const std::vector<float>& rope_divisors, ModelShape* shape) {
  return ReadModelShape([model](const std::string& key) { return ModelMetadata(model, key); }, rope_divisors, shape);
}

Status ReadModelShape(const MetadataLookup& lookup, const std::vector<float>& rope_divisors, ModelShape* shape) {
  const std::optional<std::string> architecture = lookup("general.architecture");
  if (!architecture) return NotServed("the model's metadata names no architecture");
  const auto found = Served().find(*architecture);
  if (found == Served().end()) {
    return NotServed("architecture '" + *architecture + "' is not served: " + ReasonAgainst(*architecture));
  }
  const Architecture& known = found->second;

  Reader reader(lookup, *architecture);
  if (reader.Has("attention.kv_lora_rank") || reader.Has("attention.key_length_mla")) {
    return NotServed("the model uses multi-head latent attention (MLA), which is not served");
  }
  LayerShape layer;
  layer.rotary.halves = known.halves;
  MNEME_LLAMA_RETURN_IF_ERROR(ReadRotaryScale(reader, &layer.rotary.scale));
  const int32_t count = reader.Integer("block_count");
  const int32_t width = reader.Integer("embedding_length");
  MNEME_LLAMA_RETURN_IF_ERROR(ReadGlobalLayer(reader, *architecture, rope_divisors, count, width, &layer));
  const int32_t window = known.global_every > 0 ? reader.Integer("attention.sliding_window", 0) : 0;
  const int32_t global_every = reader.Integer("attention.sliding_window_pattern", known.global_every);
  const auto window_base =
      static_cast<float>(reader.Number("rope.freq_base_swa", static_cast<double>(known.window_rotary_base)));
  MNEME_LLAMA_RETURN_IF_ERROR(reader.status());
  MNEME_LLAMA_RETURN_IF_ERROR(CheckLayer(layer));

  ModelShape result;
  result.architecture = *architecture;
  result.name = lookup("general.name").value_or(*architecture);
  result.normed = known.normed;
  for (int32_t i = 0; i < count; ++i) {
    LayerShape one = layer;
    if (window > 0 && global_every > 0 && i % global_every != global_every - 1) {
      one.window = window;
      one.rotary.base = window_base;
      one.rotary.scale = 1.0f;
    }
    result.layers.push_back(std::move(one));
  }
  *shape = std::move(result);
  return Status();
}

}  // namespace mneme::llama
