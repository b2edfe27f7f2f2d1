// SPDX-License-Identifier: Apache-2.0
#include "memory/exchange/memory_contents.h"

#include <algorithm>
#include <array>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "base/dtype.h"
#include "base/status.h"
#include "memory/exchange/checked_json.h"

namespace mneme {
namespace {

using Metadata = std::map<std::string, std::string>;

constexpr char kFormat[] = "mneme-memory";
constexpr char kFormatVersion[] = "1";
constexpr int64_t kMaxToken = int64_t{1} << 48;  // as positions
constexpr int64_t kMaxAttachmentBytes = int64_t{1} << 30;
constexpr size_t kMaxAttachments = 1024;
constexpr size_t kMaxNameBytes = 255;  // of memories and attachments
constexpr size_t kMaxCardText = 1023;
constexpr int kCardDepth = 5;  // {"layers": [{"rotary": {"inverse_frequencies": [1.0]}}]}
constexpr int kListDepth = 3;  // {"attachments": [{"name": "a"}]}

struct NamedDType {
  const char* name;    // in the metadata
  const char* tensor;  // of the elements
  DType dtype;
};
constexpr std::array<NamedDType, 4> kDTypes = {{{"f32", "F32", DType::kF32},
                                                {"f16", "F16", DType::kF16},
                                                {"bf16", "BF16", DType::kBF16},
                                                {"i8", "I8", DType::kI8}}};
constexpr std::array<const char*, 3> kLayouts = {"none", "interleaved", "halves"};  // by RotaryLayout

const NamedDType& NamesOf(DType dtype) {
  return *std::find_if(kDTypes.begin(), kDTypes.end(), [&](const NamedDType& one) { return one.dtype == dtype; });
}

absl::Status Expected(absl::string_view where, absl::string_view what, absl::string_view got) {
  return absl::InvalidArgumentError(
      absl::StrCat("metadata \"", where, "\": expected ", what, ", got \"", got.substr(0, 60), "\""));
}

// ------------------------------------------------------------------------------------------------ writing

std::string BoolText(bool flag) {
  return flag ? "true" : "false";
}

std::string LayerJson(const LayerCard& layer) {
  const auto append_number = [](std::string* out, float number) { out->append(JsonNumber(number)); };
  return absl::StrCat(
      "{\"layer\":", layer.layer, ",\"q_heads\":", layer.query_heads, ",\"kv_heads\":", layer.kv_heads,
      ",\"key_dim\":", layer.key_dim, ",\"value_dim\":", layer.value_dim, ",\"scale\":", JsonNumber(layer.scale),
      ",\"soft_cap\":", JsonNumber(layer.soft_cap), ",\"window\":", layer.window, ",\"rotary\":{\"layout\":\"",
      kLayouts.at(static_cast<size_t>(layer.rotary.layout)), "\",\"magnitude\":", JsonNumber(layer.rotary.magnitude),
      ",\"inverse_frequencies\":[", absl::StrJoin(layer.rotary.inverse_frequencies, ",", append_number), "]}}");
}

std::string CardJson(const ModelCard& card) {
  const auto append_layer = [](std::string* out, const LayerCard& layer) { out->append(LayerJson(layer)); };
  return absl::StrCat("{\"layers\":[", absl::StrJoin(card.layers, ",", append_layer), "]}");
}

std::string AttachmentsJson(const MemoryContents& contents) {
  const auto append_one = [](std::string* out, const AttachmentRef& one) {
    absl::StrAppend(out, "{\"name\":", JsonText(one.name), ",\"tokens\":", one.tokens, ",\"bytes\":", one.bytes, "}");
  };
  return absl::StrCat("{\"attachments\":[", absl::StrJoin(contents.attachments, ",", append_one), "]}");
}

std::string ChecksumsJson(const TensorChecksums& checksums) {
  std::vector<std::string> members;
  for (const auto& [name, hash] : checksums) {
    members.push_back(absl::StrCat(JsonText(name), ":\"", absl::Hex(hash, absl::kZeroPad16), "\""));
  }
  return absl::StrCat("{", absl::StrJoin(members, ","), "}");
}

absl::Status CheckUtf8(absl::string_view what, const std::string& text) {
  if (IsUtf8(text)) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      what, ": expected UTF-8, as the file's header is JSON, got a name of ", text.size(), " bytes that is none"));
}

// ------------------------------------------------------------------------------------------------ reading

absl::StatusOr<std::string> Text(const Metadata& metadata, const std::string& name) {
  const auto found = metadata.find(name);
  if (found == metadata.end()) {
    return absl::InvalidArgumentError(absl::StrCat("metadata: expected a text \"", name, "\", got none"));
  }
  return found->second;
}

// A text that can be a C string of 1 to `most` bytes.
absl::StatusOr<std::string> NameText(const Metadata& metadata, const std::string& name, size_t most) {
  MNEME_ASSIGN_OR_RETURN(std::string text, Text(metadata, name));
  if (text.empty() || text.size() > most || text.find('\0') != std::string::npos) {
    return Expected(name, absl::StrCat("1 to ", most, " bytes without zeros"), text);
  }
  return text;
}

absl::StatusOr<int64_t> Integer(const Metadata& metadata, const std::string& name) {
  MNEME_ASSIGN_OR_RETURN(const std::string text, Text(metadata, name));
  int64_t number = 0;
  if (!absl::SimpleAtoi(text, &number) || number < 0 || number > kMaxToken) {
    return Expected(name, "a number from 0 to 2^48", text);
  }
  return number;
}

absl::StatusOr<bool> Bool(const Metadata& metadata, const std::string& name) {
  MNEME_ASSIGN_OR_RETURN(const std::string text, Text(metadata, name));
  if (text != "true" && text != "false") return Expected(name, "\"true\" or \"false\"", text);
  return text == "true";
}

absl::Status CheckFormat(const Metadata& metadata) {
  const auto found = metadata.find("format");
  if (found == metadata.end() || found->second != kFormat) {
    return absl::InvalidArgumentError(
        absl::StrCat("metadata \"format\": expected \"", kFormat, "\", which an exported memory has, got ",
                     found == metadata.end() ? "none" : absl::StrCat("\"", found->second.substr(0, 60), "\"")));
  }
  MNEME_ASSIGN_OR_RETURN(const std::string version, Text(metadata, "format_version"));
  if (version == kFormatVersion) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("metadata \"format_version\": expected \"", kFormatVersion,
                                                    "\", got \"", version.substr(0, 60), "\" of another mneme"));
}

absl::StatusOr<DType> StoredDType(const Metadata& metadata) {
  MNEME_ASSIGN_OR_RETURN(const std::string text, Text(metadata, "stored_dtype"));
  for (const NamedDType& one : kDTypes) {
    if (text == one.name) return one.dtype;
  }
  return Expected("stored_dtype", "f32, f16, bf16 or i8", text);
}

absl::StatusOr<Rotary> ParseRotary(const std::string& where, const JsonValue& value) {
  if (value.object() == nullptr) return absl::InvalidArgumentError(absl::StrCat(where, ": expected an object"));
  const JsonObject& json = *value.object();
  Rotary rotary;
  MNEME_ASSIGN_OR_RETURN(const std::string layout, TextMember(where, json, "layout"));
  const auto found = std::find(kLayouts.begin(), kLayouts.end(), layout);
  if (found == kLayouts.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ".layout: expected none, interleaved or halves, got \"", layout.substr(0, 60), "\""));
  }
  rotary.layout = static_cast<RotaryLayout>(found - kLayouts.begin());
  MNEME_ASSIGN_OR_RETURN(rotary.magnitude, FloatMember(where, json, "magnitude"));
  MNEME_ASSIGN_OR_RETURN(const JsonArray* frequencies, ArrayMember(where, json, "inverse_frequencies"));
  for (const JsonValue& entry : *frequencies) {
    MNEME_ASSIGN_OR_RETURN(const float frequency, FloatOf(absl::StrCat(where, ".inverse_frequencies"), entry));
    rotary.inverse_frequencies.push_back(frequency);
  }
  return rotary;
}

absl::StatusOr<LayerCard> ParseLayer(const std::string& where, const JsonValue& value) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (value.object() == nullptr) return absl::InvalidArgumentError(absl::StrCat(where, ": expected an object"));
  const JsonObject& json = *value.object();
  LayerCard layer;
  for (const auto& [name, field] : {std::pair{"layer", &layer.layer}, std::pair{"q_heads", &layer.query_heads},
                                    std::pair{"kv_heads", &layer.kv_heads}, std::pair{"key_dim", &layer.key_dim},
                                    std::pair{"value_dim", &layer.value_dim}, std::pair{"window", &layer.window}}) {
    MNEME_ASSIGN_OR_RETURN(const int64_t number, IntegerMember(where, json, name, 0, kMost));
    *field = static_cast<int32_t>(number);
  }
  MNEME_ASSIGN_OR_RETURN(layer.scale, FloatMember(where, json, "scale"));
  MNEME_ASSIGN_OR_RETURN(layer.soft_cap, FloatMember(where, json, "soft_cap"));
  MNEME_ASSIGN_OR_RETURN(const JsonValue* rotary, Member(where, json, "rotary"));
  MNEME_ASSIGN_OR_RETURN(layer.rotary, ParseRotary(absl::StrCat(where, ".rotary"), *rotary));
  const absl::Status valid = ValidateLayer(layer);
  if (!valid.ok()) return absl::Status(valid.code(), absl::StrCat(where, ": ", valid.message()));
  return layer;
}

absl::StatusOr<std::vector<LayerCard>> ParseLayers(const std::string& text) {
  MNEME_ASSIGN_OR_RETURN(const JsonObject json, ParseObject("metadata \"card\"", text, kCardDepth));
  MNEME_ASSIGN_OR_RETURN(const JsonArray* list, ArrayMember("metadata \"card\"", json, "layers"));
  if (list->empty()) return absl::InvalidArgumentError("metadata \"card\".layers: expected at least one layer");
  std::vector<LayerCard> layers;
  for (const JsonValue& entry : *list) {
    const std::string where = absl::StrCat("metadata \"card\".layers[", layers.size(), "]");
    MNEME_ASSIGN_OR_RETURN(LayerCard layer, ParseLayer(where, entry));
    if (!layers.empty() && layer.layer <= layers.back().layer) {
      return absl::InvalidArgumentError(absl::StrCat(where, ".layer: expected more than ", layers.back().layer,
                                                     ", as layers ascend, got ", layer.layer));
    }
    layers.push_back(std::move(layer));
  }
  return layers;
}

absl::StatusOr<std::vector<AttachmentRef>> ParseAttachments(const std::string& text, int64_t next_token) {
  const std::string where = "metadata \"attachments\"";
  MNEME_ASSIGN_OR_RETURN(const JsonObject json, ParseObject(where, text, kListDepth));
  MNEME_ASSIGN_OR_RETURN(const JsonArray* list, ArrayMember(where, json, "attachments"));
  if (list->size() > kMaxAttachments) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": expected at most ", kMaxAttachments));
  }
  std::vector<AttachmentRef> attachments;
  for (const JsonValue& value : *list) {
    if (value.object() == nullptr) return absl::InvalidArgumentError(absl::StrCat(where, ": expected objects"));
    const JsonObject& entry = *value.object();
    AttachmentRef attachment;
    MNEME_ASSIGN_OR_RETURN(attachment.name, TextMember(where, entry, "name"));
    MNEME_ASSIGN_OR_RETURN(attachment.tokens, IntegerMember(where, entry, "tokens", 0, next_token));
    MNEME_ASSIGN_OR_RETURN(const int64_t bytes, IntegerMember(where, entry, "bytes", 0, kMaxAttachmentBytes));
    attachment.bytes = static_cast<uint64_t>(bytes);
    if (attachment.name.empty() || attachment.name.size() > kMaxNameBytes ||
        attachment.name.find('\0') != std::string::npos) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": expected names of 1 to 255 bytes without zeros"));
    }
    if (!attachments.empty() && attachment.name <= attachments.back().name) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": expected names in order, got \"", attachment.name, "\" out of it"));
    }
    attachments.push_back(std::move(attachment));
  }
  return attachments;
}

absl::StatusOr<TensorChecksums> ParseChecksums(const Metadata& metadata) {
  TensorChecksums checksums;
  const auto found = metadata.find("checksums");
  if (found == metadata.end()) return checksums;
  MNEME_ASSIGN_OR_RETURN(const JsonObject json, ParseObject("metadata \"checksums\"", found->second, 1));
  for (const auto& [name, value] : json) {
    uint64_t number = 0;
    if (value.text() == nullptr || value.text()->size() != 16 || !absl::SimpleHexAtoi(*value.text(), &number)) {
      return Expected(absl::StrCat("checksums.", name), "16 hexadecimal digits", value.Describe());
    }
    checksums[name] = number;
  }
  return checksums;
}

absl::StatusOr<MemoryOptions> ParseOptions(const Metadata& metadata) {
  MemoryOptions options;
  MNEME_ASSIGN_OR_RETURN(options.stored_dtype, StoredDType(metadata));
  MNEME_ASSIGN_OR_RETURN(options.normalise_keys, Bool(metadata, "normalise_keys"));
  MNEME_ASSIGN_OR_RETURN(options.keys_rotated, Bool(metadata, "keys_rotated"));
  MNEME_ASSIGN_OR_RETURN(options.max_tokens, Integer(metadata, "max_tokens"));
  MNEME_ASSIGN_OR_RETURN(options.pinned_tokens, Integer(metadata, "pinned_tokens"));
  MNEME_ASSIGN_OR_RETURN(options.segment_tokens, Integer(metadata, "segment_tokens"));
  MNEME_ASSIGN_OR_RETURN(options.index_spec, Text(metadata, "index"));
  return options;
}

}  // namespace

std::vector<std::pair<int64_t, int64_t>> MemoryContents::HeldRanges() const {
  const int64_t pinned = std::min(options.pinned_tokens, next_token);
  std::vector<std::pair<int64_t, int64_t>> ranges;
  if (first_kept <= pinned) {
    ranges.emplace_back(0, next_token);
  } else {
    ranges.emplace_back(0, pinned);
    ranges.emplace_back(std::min(first_kept, next_token), next_token);
  }
  std::erase_if(ranges, [](const auto& range) { return range.first >= range.second; });
  return ranges;
}

int64_t MemoryContents::HeldTokens() const {
  int64_t tokens = 0;
  for (const auto& [begin, end] : HeldRanges()) tokens += end - begin;
  return tokens;
}

std::vector<ExchangeTensor> TensorsOf(const MemoryContents& contents) {
  const int64_t tokens = contents.HeldTokens();
  const std::string dtype = NamesOf(contents.options.stored_dtype).tensor;
  std::vector<ExchangeTensor> tensors;
  const auto add = [&](TensorKind kind, size_t place, std::string name, std::string type, std::vector<int64_t> shape) {
    tensors.push_back({kind, place, {std::move(name), std::move(type), std::move(shape)}});
  };
  add(TensorKind::kPositions, 0, "positions", "I64", {tokens});
  add(TensorKind::kTokenIds, 0, "token_ids", "I32", {tokens});
  for (size_t place = 0; place < contents.card.layers.size(); ++place) {
    const LayerCard& layer = contents.card.layers[place];
    const std::string prefix = absl::StrCat("layers.", layer.layer, ".");
    const bool scaled = contents.options.stored_dtype == DType::kI8;
    add(TensorKind::kKeys, place, prefix + "keys", dtype, {tokens, layer.kv_heads, layer.key_dim});
    if (scaled) add(TensorKind::kKeyScales, place, prefix + "key_scales", "F32", {tokens, layer.kv_heads});
    add(TensorKind::kValues, place, prefix + "values", dtype, {tokens, layer.kv_heads, layer.value_dim});
    if (scaled) add(TensorKind::kValueScales, place, prefix + "value_scales", "F32", {tokens, layer.kv_heads});
  }
  for (size_t place = 0; place < contents.attachments.size(); ++place) {
    add(TensorKind::kAttachment, place, absl::StrCat("attachments.", place), "U8",
        {static_cast<int64_t>(contents.attachments[place].bytes)});
  }
  return tensors;
}

absl::StatusOr<Metadata> FormatMetadata(const MemoryContents& contents, const TensorChecksums& checksums) {
  MNEME_RETURN_IF_ERROR(CheckUtf8("memory name", contents.name));
  MNEME_RETURN_IF_ERROR(CheckUtf8("card.model_name", contents.card.model_name));
  MNEME_RETURN_IF_ERROR(CheckUtf8("card.weights_fingerprint", contents.card.weights_fingerprint));
  for (const AttachmentRef& attachment : contents.attachments) {
    MNEME_RETURN_IF_ERROR(CheckUtf8("attachment name", attachment.name));
  }
  const MemoryOptions& options = contents.options;
  return Metadata{{"format", kFormat},
                  {"format_version", kFormatVersion},
                  {"name", contents.name},
                  {"model_name", contents.card.model_name},
                  {"weights_fingerprint", contents.card.weights_fingerprint},
                  {"card", CardJson(contents.card)},
                  {"stored_dtype", NamesOf(options.stored_dtype).name},
                  {"keys_rotated", BoolText(options.keys_rotated)},
                  {"normalise_keys", BoolText(options.normalise_keys)},
                  {"max_tokens", absl::StrCat(options.max_tokens)},
                  {"pinned_tokens", absl::StrCat(options.pinned_tokens)},
                  {"segment_tokens", absl::StrCat(options.segment_tokens)},
                  {"index", options.index_spec},
                  {"next_token", absl::StrCat(contents.next_token)},
                  {"first_kept", absl::StrCat(contents.first_kept)},
                  {"attachments", AttachmentsJson(contents)},
                  {"checksums", ChecksumsJson(checksums)}};
}

absl::StatusOr<MemoryContents> ParseMetadata(const Metadata& metadata, TensorChecksums* checksums) {
  MNEME_RETURN_IF_ERROR(CheckFormat(metadata));
  MemoryContents contents;
  MNEME_ASSIGN_OR_RETURN(contents.name, NameText(metadata, "name", kMaxNameBytes));
  MNEME_ASSIGN_OR_RETURN(contents.card.model_name, NameText(metadata, "model_name", kMaxCardText));
  MNEME_ASSIGN_OR_RETURN(contents.card.weights_fingerprint, NameText(metadata, "weights_fingerprint", kMaxCardText));
  MNEME_ASSIGN_OR_RETURN(const std::string card, Text(metadata, "card"));
  MNEME_ASSIGN_OR_RETURN(contents.card.layers, ParseLayers(card));
  MNEME_ASSIGN_OR_RETURN(contents.options, ParseOptions(metadata));
  MNEME_ASSIGN_OR_RETURN(contents.next_token, Integer(metadata, "next_token"));
  MNEME_ASSIGN_OR_RETURN(contents.first_kept, Integer(metadata, "first_kept"));
  if (contents.first_kept > contents.next_token) {
    return Expected("first_kept", absl::StrCat("at most ", contents.next_token, " (next_token)"),
                    absl::StrCat(contents.first_kept));
  }
  MNEME_ASSIGN_OR_RETURN(const std::string attachments, Text(metadata, "attachments"));
  MNEME_ASSIGN_OR_RETURN(contents.attachments, ParseAttachments(attachments, contents.next_token));
  MNEME_ASSIGN_OR_RETURN(*checksums, ParseChecksums(metadata));
  return contents;
}

}  // namespace mneme
