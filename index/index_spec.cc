// SPDX-License-Identifier: Apache-2.0
#include <charconv>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

#include "base/status.h"
#include "index/faiss/faiss_gpu.h"
#include "index/faiss/faiss_index.h"
#include "index/key_index.h"

namespace mneme {
namespace {

struct KindName {
  IndexKind kind;
  absl::string_view name;
};

constexpr KindName kKinds[] = {
    {IndexKind::kAuto, "auto"},
    {IndexKind::kScan, "scan"},
    {IndexKind::kCentroid, "centroid"},
    {IndexKind::kFlat, "flat"},
    {IndexKind::kIvf, "ivf"},
    {IndexKind::kIvfPq, "ivfpq"},
    {IndexKind::kHnsw, "hnsw"},
    {IndexKind::kGpuFlat, "gpu-flat"},
    {IndexKind::kGpuIvf, "gpu-ivf"},
    {IndexKind::kGpuIvfPq, "gpu-ivfpq"},
    {IndexKind::kGpuCagra, "gpu-cagra"},
};

constexpr absl::string_view kFactoryPrefix = "faiss:";

// A number that a spec may have, and the kinds that have it.
struct Option {
  absl::string_view name;
  int32_t IndexSpec::*field;
  bool ivf, ivfpq, hnsw, gpu, centroid = false;
};

constexpr Option kOptions[] = {
    {"lists", &IndexSpec::lists, true, true, false, false},
    {"probes", &IndexSpec::probes, true, true, false, false},
    {"pq_bytes", &IndexSpec::pq_bytes, false, true, false, false},
    {"degree", &IndexSpec::graph_degree, false, false, true, false},
    {"ef_construction", &IndexSpec::ef_construction, false, false, true, false},
    {"ef_search", &IndexSpec::ef_search, false, false, true, false},
    {"scratch_mib", &IndexSpec::scratch_mib, false, false, false, true},
    {"cluster_rows", &IndexSpec::cluster_rows, false, false, false, false, true},
};

// A share from 0 to 1 that a spec of kind centroid may have.
struct ShareOption {
  absl::string_view name;
  float IndexSpec::*field;
};

constexpr ShareOption kShareOptions[] = {
    {"outliers", &IndexSpec::outliers},
    {"max_miss", &IndexSpec::max_miss},
    {"max_share", &IndexSpec::max_share},
};

bool HasOption(IndexKind kind, const Option& option) {
  switch (kind) {
    case IndexKind::kIvf: return option.ivf;
    case IndexKind::kIvfPq: return option.ivfpq;
    case IndexKind::kHnsw: return option.hnsw;
    case IndexKind::kCentroid: return option.centroid;
    // The factory string itself has the lists, code bytes and links.
    case IndexKind::kFactory:
      return option.name == "probes" || option.name == "ef_construction" || option.name == "ef_search";
    case IndexKind::kGpuFlat: return option.gpu;
    case IndexKind::kGpuIvf: return option.ivf || option.gpu;
    case IndexKind::kGpuIvfPq: return option.ivfpq || option.gpu;
    default: return false;
  }
}

absl::string_view NameOf(IndexKind kind) {
  for (const KindName& known : kKinds) {
    if (known.kind == kind) return known.name;
  }
  return "";
}

// The kind that does the same on the CPU.
IndexKind HostKindOf(IndexKind kind) {
  switch (kind) {
    case IndexKind::kGpuFlat: return IndexKind::kFlat;
    case IndexKind::kGpuIvf: return IndexKind::kIvf;
    case IndexKind::kGpuIvfPq: return IndexKind::kIvfPq;
    default: return IndexKind::kHnsw;
  }
}

// Parses an item like "max_miss=0.01" of the spec `text`, if it is a share. Returns: whether it is one.
absl::StatusOr<bool> ParseShare(absl::string_view text, absl::string_view item, IndexSpec& spec) {
  const size_t equals = item.find('=');
  if (spec.kind != IndexKind::kCentroid || equals == absl::string_view::npos) return false;
  for (const ShareOption& option : kShareOptions) {
    if (option.name != item.substr(0, equals)) continue;
    const absl::string_view number = item.substr(equals + 1);
    float value = 0;
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), value);
    if (error != std::errc() || end != number.data() + number.size() || !(value >= 0 && value <= 1)) {
      return absl::InvalidArgumentError(
          absl::StrCat("index \"", text, "\": ", option.name, " must be a number from 0 to 1, not \"", number, "\""));
    }
    if (spec.*option.field >= 0) {
      return absl::InvalidArgumentError(absl::StrCat("index \"", text, "\": ", option.name, " is given twice"));
    }
    spec.*option.field = value + 0.0f;  // -0 becomes 0
    return true;
  }
  return false;
}

// Parses one item, like "lists=256", of the spec `text`.
absl::Status ParseOption(absl::string_view text, absl::string_view item, IndexSpec& spec) {
  MNEME_ASSIGN_OR_RETURN(const bool is_share, ParseShare(text, item, spec));
  if (is_share) return absl::OkStatus();
  const size_t equals = item.find('=');
  const absl::string_view name = item.substr(0, equals);
  std::vector<absl::string_view> known;
  for (const Option& option : kOptions) {
    if (!HasOption(spec.kind, option)) continue;
    known.push_back(option.name);
    if (option.name != name || equals == absl::string_view::npos) continue;
    const absl::string_view number = item.substr(equals + 1);
    int32_t value = 0;
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), value);
    if (error != std::errc() || end != number.data() + number.size() || value < 1 || value > (1 << 24)) {
      return absl::InvalidArgumentError(absl::StrCat("index \"", text, "\": ", name, " must be a number from 1 to ",
                                                     1 << 24, ", not \"", number, "\""));
    }
    if (spec.*option.field != 0) {
      return absl::InvalidArgumentError(absl::StrCat("index \"", text, "\": ", name, " is given twice"));
    }
    spec.*option.field = value;
    return absl::OkStatus();
  }
  if (spec.kind == IndexKind::kCentroid) {
    for (const ShareOption& option : kShareOptions) known.push_back(option.name);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("index \"", text, "\": \"", item, "\" is not an option of this kind; ",
                   known.empty() ? "it has none" : absl::StrCat("expected ", absl::StrJoin(known, "=N, "), "=N")));
}

}  // namespace

absl::StatusOr<IndexSpec> ParseIndexSpec(absl::string_view text) {
  IndexSpec spec;
  std::vector<absl::string_view> items;
  if (absl::StartsWith(text, kFactoryPrefix)) {
    spec.kind = IndexKind::kFactory;
    // FAISS's strings contain commas, too; items with a '=' are mneme's options.
    std::vector<absl::string_view> factory;
    for (const absl::string_view item : absl::StrSplit(text.substr(kFactoryPrefix.size()), ',')) {
      (absl::StrContains(item, '=') ? items : factory).push_back(item);
    }
    spec.factory = absl::StrJoin(factory, ",");
    MNEME_RETURN_IF_ERROR(ParseFactory(spec.factory).status());
  } else {
    items = absl::StrSplit(text, ',');
    const absl::string_view name = items.front();
    items.erase(items.begin());
    const KindName* found = nullptr;
    for (const KindName& kind : kKinds) {
      if (kind.name == name) found = &kind;
    }
    if (found == nullptr) {
      std::vector<absl::string_view> names;
      for (const KindName& kind : kKinds) names.push_back(kind.name);
      return absl::InvalidArgumentError(absl::StrCat("index \"", text, "\": expected ", absl::StrJoin(names, ", "),
                                                     " or faiss:<factory string>, not \"", name, "\""));
    }
    spec.kind = found->kind;
  }
  for (const absl::string_view item : items) MNEME_RETURN_IF_ERROR(ParseOption(text, item, spec));
  MNEME_RETURN_IF_ERROR(CheckGpuBuiltIn(spec.kind));
  return spec;
}

std::string FormatIndexSpec(const IndexSpec& spec) {
  std::string text;
  if (spec.kind == IndexKind::kFactory) {
    text = absl::StrCat(kFactoryPrefix, spec.factory);
  } else {
    text = std::string(NameOf(spec.kind));
  }
  for (const Option& option : kOptions) {
    if (HasOption(spec.kind, option) && spec.*option.field != 0) {
      absl::StrAppend(&text, ",", option.name, "=", spec.*option.field);
    }
  }
  if (spec.kind == IndexKind::kCentroid) {
    for (const ShareOption& option : kShareOptions) {
      if (!(spec.*option.field >= 0)) continue;
      char number[32];  // the shortest text that is read as the same number
      const auto [end, error] = std::to_chars(number, number + sizeof(number), spec.*option.field);
      absl::StrAppend(&text, ",", option.name, "=", absl::string_view(number, static_cast<size_t>(end - number)));
    }
  }
  return text;
}

bool IsGpuKind(IndexKind kind) {
  return kind >= IndexKind::kGpuFlat && kind <= IndexKind::kGpuCagra;
}

absl::Status CheckGpuBuiltIn(IndexKind kind) {
  if (!IsGpuKind(kind)) return absl::OkStatus();
  const std::string missing = MissingForGpuKind(kind);
  if (missing.empty()) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(NameOf(kind), ": not built in, it takes ", missing, "; ",
                                               NameOf(HostKindOf(kind)), " is its like on the CPU"));
}

}  // namespace mneme
