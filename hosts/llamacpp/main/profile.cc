// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/main/profile.h"

#include <cmath>
#include <fstream>
#include <functional>
#include <set>
#include <sstream>
#include <type_traits>

#include "hosts/llamacpp/main/failure.h"
#include "nlohmann/json.hpp"

namespace mneme::llama {
namespace {

using nlohmann::json;

// Reads one JSON object key by key; Finish refuses keys that nobody asked for.
class ObjectReader {
 public:
  ObjectReader(const json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) throw UsageError(where_ + ": expected a JSON object, got " + object.dump());
  }

  const json* Find(const char* key) {
    known_.insert(key);
    const auto found = object_.find(key);
    return found == object_.end() ? nullptr : &*found;
  }
  [[noreturn]] void Refuse(const std::string& key, const std::string& expected) const {
    throw UsageError(where_ + ": " + key + ": expected " + expected + ", got " + object_.at(key).dump());
  }

  void Integer(const char* key, int64_t least, int64_t most, const std::function<void(int64_t)>& take) {
    const json* value = Find(key);
    if (value == nullptr) return;
    if (!value->is_number_integer() || *value < least || *value > most) {
      Refuse(key, "an integer of " + std::to_string(least) + " to " + std::to_string(most));
    }
    take(value->get<int64_t>());
  }
  void Number(const char* key, double least, float* number) {
    const json* value = Find(key);
    if (value == nullptr) return;
    CheckNumber(key, *value, least);
    *number = value->get<float>();
  }
  void Choice(const char* key, const std::set<std::string>& choices, std::string* choice) {
    const json* value = Find(key);
    if (value == nullptr) return;
    if (!value->is_string() || !choices.contains(value->get<std::string>())) {
      std::string names;
      for (const std::string& name : choices) names += (names.empty() ? "" : ", ") + name;
      Refuse(key, "one of " + names);
    }
    *choice = value->get<std::string>();
  }
  // One number, or a list of them.
  template <typename T>
  void Numbers(const char* key, double least, std::vector<T>* numbers) {
    const json* value = Find(key);
    if (value == nullptr) return;
    const json list = value->is_array() ? *value : json::array({*value});
    if (list.empty()) Refuse(key, "a number or a list with one for each query head");
    numbers->clear();
    for (const json& one : list) {
      CheckNumber(key, one, least);
      if (std::is_integral_v<T> && !one.is_number_integer()) Refuse(key, "integers");
      numbers->push_back(one.get<T>());
    }
  }

  void Finish() const {
    for (const auto& [key, unused] : object_.items()) {
      if (!known_.contains(key)) throw UsageError(where_ + ": unknown key " + key);
    }
  }

 private:
  void CheckNumber(const char* key, const json& value, double least) const {
    if (value.is_number() && std::isfinite(value.get<float>()) && value.get<double>() >= least) return;
    Refuse(key, std::isfinite(least) ? "numbers of at least " + json(least).dump() : "finite numbers");
  }

  const json& object_;
  const std::string where_;
  std::set<std::string> known_;
};

constexpr double kAnyNumber = -INFINITY;
constexpr int64_t kManyTokens = int64_t{1} << 40;

LayerSettings ReadLayer(const json& object, const std::string& where) {
  ObjectReader reader(object, where);
  LayerSettings layer;
  if (reader.Find("layer") == nullptr) throw UsageError(where + ": layer: is missing");
  reader.Integer("layer", 0, 1 << 20, [&](int64_t value) { layer.layer = static_cast<int32_t>(value); });
  reader.Numbers("top_k", 0, &layer.top_k);
  reader.Numbers("distance", 0, &layer.distance);
  reader.Numbers("bias", kAnyNumber, &layer.memory_bias);
  reader.Numbers("decay", 0, &layer.decay);
  reader.Finish();
  return layer;
}

ModelSettings ReadSettings(const std::string& text, const std::string& source, ModelSettings settings) {
  const json object = json::parse(text, nullptr, /*allow_exceptions=*/false, /*ignore_comments=*/true);
  if (object.is_discarded()) throw UsageError(source + ": is not JSON");
  ObjectReader reader(object, source);
  if (reader.Find("layers") != nullptr) reader.Numbers("layers", 0, &settings.layers);
  reader.Choice("policy", {"fixed", "as-stored", "window-start", "clamped"}, &settings.policy);
  reader.Choice("fusion", {"joint", "memory-only", "local-only"}, &settings.fusion);
  reader.Number("distance", 0, &settings.distance);
  reader.Integer("top_k", 1, kManyTokens, [&](int64_t value) { settings.top_k = value; });
  reader.Number("bias", kAnyNumber, &settings.memory_bias);
  reader.Number("decay", 0, &settings.decay);
  reader.Number("decay_beyond", 1, &settings.decay_beyond);
  reader.Integer("pinned", 0, kManyTokens, [&](int64_t value) { settings.pinned = value; });
  reader.Integer("window", 1, 1 << 20, [&](int64_t value) { settings.window = static_cast<int32_t>(value); });
  if (const json* rules = reader.Find("rules"); rules != nullptr) {
    if (!rules->is_array()) reader.Refuse("rules", "a list of objects, one for a layer");
    settings.rules.clear();
    for (size_t i = 0; i < rules->size(); ++i) {
      settings.rules.push_back(ReadLayer((*rules)[i], source + ": rules[" + std::to_string(i) + "]"));
    }
  }
  reader.Finish();
  return settings;
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) throw Failure("cannot read " + path);
  return text.str();
}

// What a memory keeps; "" if there is no store, no memory, or it keeps nothing.
std::string KeptSettings(const std::string& path, const std::string& name) {
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  options.mode = MNEME_MODE_READ_ONLY;
  options.must_exist = 1;
  options.threads = 1;
  mneme_store* store = nullptr;
  if (mneme_store_open(path.c_str(), &options, &store) != MNEME_OK) return "";  // the command itself says why
  mneme_memory* memory = nullptr;
  std::string text;
  size_t size = 0;
  if (mneme_memory_open(store, name.c_str(), nullptr, &memory) == MNEME_OK) {
    if (mneme_memory_get_attachment(memory, kSettingsAttachment, nullptr, 0, &size, nullptr) == MNEME_OK) {
      text.resize(size);
      if (mneme_memory_get_attachment(memory, kSettingsAttachment, text.data(), size, nullptr, nullptr) != MNEME_OK) {
        text.clear();
      }
    }
    mneme_memory_close(memory);
  }
  mneme_store_close(store);
  return text;
}

}  // namespace

std::string SettingsText(const ModelSettings& settings) {
  json object = {{"policy", settings.policy},
                 {"fusion", settings.fusion},
                 {"distance", settings.distance},
                 {"top_k", settings.top_k},
                 {"bias", settings.memory_bias},
                 {"decay", settings.decay},
                 {"decay_beyond", settings.decay_beyond},
                 {"pinned", settings.pinned},
                 {"window", settings.window}};
  if (!settings.layers.empty()) object["layers"] = settings.layers;
  for (const LayerSettings& layer : settings.rules) {
    json rules = {{"layer", layer.layer}};
    if (!layer.top_k.empty()) rules["top_k"] = layer.top_k;
    if (!layer.distance.empty()) rules["distance"] = layer.distance;
    if (!layer.memory_bias.empty()) rules["bias"] = layer.memory_bias;
    if (!layer.decay.empty()) rules["decay"] = layer.decay;
    object["rules"].push_back(rules);
  }
  return object.dump();
}

void TakeSettings(const std::string& text, const std::string& source, const CLI::App& command,
                  ModelSettings* settings) {
  const ModelSettings read = ReadSettings(text, source, *settings);
  const auto take = [&](const char* option, auto& to, const auto& from) {
    if (!Given(command, option)) to = from;
  };
  take("--layers", settings->layers, read.layers);
  take("--policy", settings->policy, read.policy);
  take("--fusion", settings->fusion, read.fusion);
  take("--distance", settings->distance, read.distance);
  take("--top-k", settings->top_k, read.top_k);
  take("--bias", settings->memory_bias, read.memory_bias);
  take("--decay", settings->decay, read.decay);
  take("--decay-beyond", settings->decay_beyond, read.decay_beyond);
  take("--pinned", settings->pinned, read.pinned);
  take("--window", settings->window, read.window);
  settings->rules = read.rules;
}

void TakeProfile(const CLI::App& command, ModelSettings* settings) {
  if (!settings->profile.empty()) TakeSettings(ReadFile(settings->profile), "--profile", command, settings);
}

void CompleteSettings(const CLI::App& command, const std::string& store, const std::string& memory,
                      ModelSettings* settings) {
  if (settings->profile.empty() && !store.empty() && !memory.empty()) {
    const std::string kept = KeptSettings(store, memory);
    if (!kept.empty()) TakeSettings(kept, "the settings that " + memory + " keeps", command, settings);
  }
  CheckModelOptions(command, *settings);
}

void KeepSettings(const Memory& memory, const ModelSettings& settings) {
  const mneme_status found =
      mneme_memory_get_attachment(memory.get(), kSettingsAttachment, nullptr, 0, nullptr, nullptr);
  if (found == MNEME_OK) return;
  if (found != MNEME_STATUS_NOT_FOUND) CheckEngine(found);
  const std::string text = SettingsText(settings);
  CheckEngine(mneme_memory_set_attachment(memory.get(), kSettingsAttachment, text.data(), text.size(), 0));
}

}  // namespace mneme::llama
