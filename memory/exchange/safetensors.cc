// SPDX-License-Identifier: Apache-2.0
#include "memory/exchange/safetensors.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "base/status.h"
#include "memory/exchange/checked_json.h"

namespace mneme {
namespace {

constexpr char kMetadata[] = "__metadata__";
constexpr size_t kAlignment = 8;
constexpr int kHeaderDepth = 3;  // {"tensor": {"shape": [1]}}
constexpr size_t kMaxDims = 8;

std::string Where(const std::string& tensor) {
  return absl::StrCat("tensor \"", tensor, "\"");
}

absl::Status Expected(const std::string& tensor, absl::string_view what, absl::string_view got) {
  return absl::InvalidArgumentError(absl::StrCat(Where(tensor), ": expected ", what, ", got ", got));
}

absl::StatusOr<std::vector<int64_t>> IntegersMember(const std::string& tensor, const JsonObject& object,
                                                    const std::string& name, size_t most) {
  MNEME_ASSIGN_OR_RETURN(const JsonArray* array, ArrayMember(Where(tensor), object, name));
  if (array->size() > most) {
    return Expected(tensor, absl::StrCat("\"", name, "\" of at most ", most, " integers"), absl::StrCat(array->size()));
  }
  std::vector<int64_t> numbers;
  for (const JsonValue& entry : *array) {
    MNEME_ASSIGN_OR_RETURN(const int64_t number, IntegerOf(absl::StrCat(Where(tensor), ".", name), entry, 0,
                                                           std::numeric_limits<int64_t>::max()));
    numbers.push_back(number);
  }
  return numbers;
}

// Returns: the bytes of a tensor.
absl::StatusOr<uint64_t> SizeOf(const TensorEntry& entry) {
  const int64_t element = ElementBytes(entry.dtype);
  if (element == 0) return Expected(entry.name, "F32, F16, BF16, I8, I32, I64 or U8", entry.dtype);
  int64_t bytes = element;
  for (const int64_t dim : entry.shape) {
    if (__builtin_mul_overflow(bytes, dim, &bytes)) {
      return Expected(entry.name, "a shape of at most 2^63 bytes", DescribeTensor(entry.dtype, entry.shape));
    }
  }
  return static_cast<uint64_t>(bytes);
}

absl::StatusOr<TensorEntry> ParseTensor(const std::string& name, const JsonValue& value) {
  if (value.object() == nullptr) return Expected(name, "an object", value.Describe());
  const JsonObject& object = *value.object();
  TensorEntry entry;
  entry.name = name;
  MNEME_ASSIGN_OR_RETURN(entry.dtype, TextMember(Where(name), object, "dtype"));
  MNEME_ASSIGN_OR_RETURN(entry.shape, IntegersMember(name, object, "shape", kMaxDims));
  MNEME_ASSIGN_OR_RETURN(const std::vector<int64_t> offsets, IntegersMember(name, object, "data_offsets", 2));
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    return Expected(name, "\"data_offsets\" of a begin and an end",
                    absl::StrCat("[", absl::StrJoin(offsets, ", "), "]"));
  }
  entry.begin = static_cast<uint64_t>(offsets[0]);
  entry.end = static_cast<uint64_t>(offsets[1]);
  MNEME_ASSIGN_OR_RETURN(const uint64_t bytes, SizeOf(entry));
  if (bytes != entry.bytes()) {
    return Expected(name, absl::StrCat(bytes, " bytes for ", DescribeTensor(entry.dtype, entry.shape)),
                    absl::StrCat(entry.bytes()));
  }
  return entry;
}

absl::StatusOr<std::map<std::string, std::string>> ParseMetadata(const JsonValue& given) {
  if (given.object() == nullptr) return Expected(kMetadata, "an object", given.Describe());
  std::map<std::string, std::string> metadata;
  for (const auto& [name, value] : *given.object()) {
    if (value.text() == nullptr) return Expected(absl::StrCat(kMetadata, ".", name), "text", value.Describe());
    metadata[name] = *value.text();
  }
  return metadata;
}

absl::Status CheckCovers(const std::vector<TensorEntry>& tensors, uint64_t data_bytes) {
  uint64_t end = 0;
  for (const TensorEntry& entry : tensors) {
    if (entry.begin != end) {
      return Expected(entry.name, absl::StrCat("bytes from ", end, " on, where the tensor before it ends"),
                      absl::StrCat(entry.begin));
    }
    end = entry.end;
  }
  if (end == data_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("expected ", end, " bytes behind the header, as the tensors end there, got ", data_bytes));
}

}  // namespace

int64_t ElementBytes(absl::string_view dtype) {
  if (dtype == "I64") return 8;
  if (dtype == "F32" || dtype == "I32") return 4;
  if (dtype == "F16" || dtype == "BF16") return 2;
  return dtype == "I8" || dtype == "U8" ? 1 : 0;
}

std::string DescribeTensor(absl::string_view dtype, const std::vector<int64_t>& shape) {
  return absl::StrCat(dtype, " [", absl::StrJoin(shape, ", "), "]");
}

std::string FormatHeader(const SafetensorsHeader& header) {
  std::vector<std::string> members;
  for (const auto& [name, value] : header.metadata) members.push_back(JsonText(name) + ":" + JsonText(value));
  std::string text = absl::StrCat("{\"", kMetadata, "\":{", absl::StrJoin(members, ","), "}");
  for (const TensorEntry& entry : header.tensors) {
    absl::StrAppend(&text, ",", JsonText(entry.name), ":{\"dtype\":", JsonText(entry.dtype), ",\"shape\":[",
                    absl::StrJoin(entry.shape, ","), "],\"data_offsets\":[", entry.begin, ",", entry.end, "]}");
  }
  text += "}";
  text.resize((text.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  std::string bytes;
  for (size_t i = 0; i < sizeof(uint64_t); ++i) {
    bytes.push_back(static_cast<char>(static_cast<uint64_t>(text.size()) >> (8 * i)));
  }
  return bytes + text;
}

absl::StatusOr<SafetensorsHeader> ParseHeader(absl::string_view json, uint64_t data_bytes) {
  MNEME_ASSIGN_OR_RETURN(const JsonObject object, ParseObject("the header", json, kHeaderDepth));
  SafetensorsHeader header;
  for (const auto& [name, value] : object) {
    if (name == kMetadata) {
      MNEME_ASSIGN_OR_RETURN(header.metadata, ParseMetadata(value));
    } else {
      MNEME_ASSIGN_OR_RETURN(TensorEntry entry, ParseTensor(name, value));
      header.tensors.push_back(std::move(entry));
    }
  }
  std::sort(header.tensors.begin(), header.tensors.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  MNEME_RETURN_IF_ERROR(CheckCovers(header.tensors, data_bytes));
  return header;
}

}  // namespace mneme
