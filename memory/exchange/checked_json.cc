// SPDX-License-Identifier: Apache-2.0
#include "memory/exchange/checked_json.h"

#include <cmath>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

#include "base/status.h"

namespace mneme {
namespace {

using Json = nlohmann::json;

absl::Status Expected(absl::string_view where, absl::string_view what, absl::string_view got) {
  return absl::InvalidArgumentError(absl::StrCat(where, ": expected ", what, ", got ", got));
}

// Takes the parser's events and makes a JsonValue of them. Returning false ends the parsing.
class Builder final : public nlohmann::json_sax<Json> {
 public:
  explicit Builder(size_t max_depth) : max_depth_(max_depth) {}

  bool null() override { return Add(std::monostate()); }
  bool boolean(bool value) override { return Add(value); }
  bool number_integer(int64_t value) override { return Add(value); }
  bool number_unsigned(uint64_t value) override { return Add(value); }
  bool number_float(double value, const std::string&) override { return Add(value); }
  bool string(std::string& value) override { return Add(std::move(value)); }
  bool binary(Json::binary_t&) override { return false; }
  bool start_object(size_t) override { return Open(JsonObject()); }
  bool end_object() override { return Close(); }
  bool start_array(size_t) override { return Open(JsonArray()); }
  bool end_array() override { return Close(); }
  bool key(std::string& name) override {
    const auto [place, added] = std::get<JsonObject>(open_.back()->value).try_emplace(name);
    if (!added) twice_ = JsonText(name);
    next_ = &place->second;
    return added;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception&) override { return false; }

  JsonValue& root() { return root_; }
  bool too_deep() const { return too_deep_; }
  const std::string& twice() const { return twice_; }

 private:
  template <typename Value>
  bool Add(Value value) {
    Next().value = std::move(value);
    return true;
  }
  template <typename Container>
  bool Open(Container container) {
    if (open_.size() >= max_depth_) return !(too_deep_ = true);
    JsonValue& value = Next();
    value.value = std::move(container);
    open_.push_back(&value);
    return true;
  }
  bool Close() {
    open_.pop_back();
    return true;
  }
  // Returns: where the next value goes.
  JsonValue& Next() {
    if (open_.empty()) return root_;
    auto* const array = std::get_if<JsonArray>(&open_.back()->value);
    return array == nullptr ? *next_ : array->emplace_back();
  }

  const size_t max_depth_;
  JsonValue root_;
  std::vector<JsonValue*> open_;  // the containers around the next value
  JsonValue* next_ = nullptr;     // the member whose name came last
  bool too_deep_ = false;
  std::string twice_;
};

}  // namespace

std::string JsonValue::Describe() const {
  constexpr size_t kMost = 60;
  const auto describe = [](const auto& one) -> std::string {
    using Value = std::decay_t<decltype(one)>;
    if constexpr (std::is_same_v<Value, std::monostate>) return "null";
    if constexpr (std::is_same_v<Value, bool>) return one ? "true" : "false";
    if constexpr (std::is_arithmetic_v<Value> && !std::is_same_v<Value, bool>) return absl::StrCat(one);
    if constexpr (std::is_same_v<Value, std::string>) {
      return absl::StrCat("\"", one.substr(0, kMost), one.size() > kMost ? "...\"" : "\"");
    }
    if constexpr (std::is_same_v<Value, JsonArray>) return absl::StrCat("an array of ", one.size());
    if constexpr (std::is_same_v<Value, JsonObject>) return absl::StrCat("an object of ", one.size());
  };
  return std::visit(describe, value);
}

absl::StatusOr<JsonObject> ParseObject(absl::string_view where, absl::string_view text, int max_depth) {
  Builder builder(static_cast<size_t>(max_depth));
  const bool parsed = Json::sax_parse(text.begin(), text.end(), &builder);
  if (builder.too_deep()) return Expected(where, absl::StrCat("JSON of depth ", max_depth, " at most"), "a deeper one");
  if (!builder.twice().empty()) return Expected(where, "different names", absl::StrCat(builder.twice(), " twice"));
  if (!parsed) return Expected(where, "JSON", absl::StrCat(text.size(), " bytes that are none"));
  auto* const object = std::get_if<JsonObject>(&builder.root().value);
  if (object == nullptr) return Expected(where, "a JSON object", builder.root().Describe());
  return std::move(*object);
}

absl::StatusOr<const JsonValue*> Member(absl::string_view where, const JsonObject& object, const std::string& name) {
  const auto found = object.find(name);
  if (found == object.end()) return Expected(where, absl::StrCat("a member \"", name, "\""), "none");
  return &found->second;
}

absl::StatusOr<std::string> TextMember(absl::string_view where, const JsonObject& object, const std::string& name) {
  MNEME_ASSIGN_OR_RETURN(const JsonValue* value, Member(where, object, name));
  if (value->text() == nullptr) return Expected(absl::StrCat(where, ".", name), "text", value->Describe());
  return *value->text();
}

absl::StatusOr<const JsonArray*> ArrayMember(absl::string_view where, const JsonObject& object,
                                             const std::string& name) {
  MNEME_ASSIGN_OR_RETURN(const JsonValue* value, Member(where, object, name));
  if (value->array() == nullptr) return Expected(absl::StrCat(where, ".", name), "an array", value->Describe());
  return value->array();
}

absl::StatusOr<int64_t> IntegerMember(absl::string_view where, const JsonObject& object, const std::string& name,
                                      int64_t least, int64_t most) {
  MNEME_ASSIGN_OR_RETURN(const JsonValue* value, Member(where, object, name));
  return IntegerOf(absl::StrCat(where, ".", name), *value, least, most);
}

absl::StatusOr<float> FloatMember(absl::string_view where, const JsonObject& object, const std::string& name) {
  MNEME_ASSIGN_OR_RETURN(const JsonValue* value, Member(where, object, name));
  return FloatOf(absl::StrCat(where, ".", name), *value);
}

absl::StatusOr<int64_t> IntegerOf(absl::string_view where, const JsonValue& value, int64_t least, int64_t most) {
  const auto* const positive = std::get_if<uint64_t>(&value.value);
  const auto* const negative = std::get_if<int64_t>(&value.value);
  const bool fits = positive != nullptr && *positive <= static_cast<uint64_t>(INT64_MAX);
  const int64_t number = fits ? static_cast<int64_t>(*positive) : negative != nullptr ? *negative : 0;
  if ((!fits && negative == nullptr) || number < least || number > most) {
    return Expected(where, absl::StrCat("an integer from ", least, " to ", most), value.Describe());
  }
  return number;
}

absl::StatusOr<float> FloatOf(absl::string_view where, const JsonValue& value) {
  double wide = NAN;
  if (const auto* const positive = std::get_if<uint64_t>(&value.value)) wide = static_cast<double>(*positive);
  if (const auto* const negative = std::get_if<int64_t>(&value.value)) wide = static_cast<double>(*negative);
  if (const auto* const real = std::get_if<double>(&value.value)) wide = *real;
  const auto number = static_cast<float>(wide);
  if (!std::isfinite(number)) return Expected(where, "a number of 32 bits", value.Describe());
  return number;
}

std::string JsonText(const std::string& text) {
  return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string JsonNumber(float number) {
  return Json(number).dump();
}

bool IsUtf8(const std::string& text) {
  // A replaced byte is longer than none.
  return JsonText(text) == Json(text).dump(-1, ' ', false, Json::error_handler_t::ignore);
}

}  // namespace mneme
