// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_EXCHANGE_CHECKED_JSON_H_
#define MNEME_MEMORY_EXCHANGE_CHECKED_JSON_H_

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace mneme {

// JSON that somebody else has written, and JSON texts. nlohmann's parser reads it, but its values are not used: their
// destructors allocate, which ends the process when memory is full.

struct JsonValue;
using JsonArray = std::vector<JsonValue>;
using JsonObject = std::map<std::string, JsonValue>;

struct JsonValue {
  std::variant<std::monostate, bool, int64_t, uint64_t, double, std::string, JsonArray, JsonObject> value;

  // Return: null for a value of another kind.
  const std::string* text() const { return std::get_if<std::string>(&value); }
  const JsonArray* array() const { return std::get_if<JsonArray>(&value); }
  const JsonObject* object() const { return std::get_if<JsonObject>(&value); }
  // Returns: the value, or what kind it is of, for a message.
  std::string Describe() const;
};

// Errors are InvalidArgument and name the place: `where` comes first in them.

// Errors: not JSON; not an object; nested deeper than `max_depth` (1: an object of plain values); a name twice in one
// object, of which parsers would take one or the other.
absl::StatusOr<JsonObject> ParseObject(absl::string_view where, absl::string_view text, int max_depth);

// Return: the member `name` of `object`, which must have it and of this kind.
absl::StatusOr<const JsonValue*> Member(absl::string_view where, const JsonObject& object, const std::string& name);
absl::StatusOr<std::string> TextMember(absl::string_view where, const JsonObject& object, const std::string& name);
absl::StatusOr<const JsonArray*> ArrayMember(absl::string_view where, const JsonObject& object,
                                             const std::string& name);
// An integer from `least` to `most`.
absl::StatusOr<int64_t> IntegerMember(absl::string_view where, const JsonObject& object, const std::string& name,
                                      int64_t least, int64_t most);
// A number that fits into f32.
absl::StatusOr<float> FloatMember(absl::string_view where, const JsonObject& object, const std::string& name);

absl::StatusOr<int64_t> IntegerOf(absl::string_view where, const JsonValue& value, int64_t least, int64_t most);
absl::StatusOr<float> FloatOf(absl::string_view where, const JsonValue& value);

// Return: a text or number as JSON; a number so that it is read as the same f32.
// Requires: the text is UTF-8.
std::string JsonText(const std::string& text);
std::string JsonNumber(float number);
bool IsUtf8(const std::string& text);

}  // namespace mneme

#endif  // MNEME_MEMORY_EXCHANGE_CHECKED_JSON_H_
