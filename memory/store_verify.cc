// SPDX-License-Identifier: Apache-2.0
#include "memory/store_verify.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "index/key_index.h"
#include "memory/segment/code_columns.h"

namespace mneme {
namespace {

// A memory that changes while it is read is read again so often.
constexpr int kMaxAttempts = 10;

// Calls visit(layer, head) for every layer and KV head of a card until one fails.
absl::Status ForEachHead(const ModelCard& card, absl::FunctionRef<absl::Status(const LayerCard&, int32_t)> visit) {
  for (const LayerCard& layer : card.layers) {
    for (int32_t head = 0; head < layer.kv_heads; ++head) MNEME_RETURN_IF_ERROR(visit(layer, head));
  }
  return absl::OkStatus();
}

// Reads one memory as one manifest names it.
class ManifestVerifier {
 public:
  ManifestVerifier(StoreContext& store, const MemoryManifest& manifest) : store_(store), manifest_(manifest) {}

  absl::Status Verify(const Progress& progress) {
    report_.memories = 1;
    MNEME_RETURN_IF_ERROR(VerifyRows(progress));
    for (const SegmentRef& ref : manifest_.segments) {
      if (ref.sealed && IsCoded(ref.rows)) MNEME_RETURN_IF_ERROR(VerifyCodes(ref));
    }
    for (const IndexRef& ref : manifest_.indexes) MNEME_RETURN_IF_ERROR(VerifyIndex(ref));
    for (const AttachmentRef& ref : manifest_.attachments) MNEME_RETURN_IF_ERROR(VerifyAttachment(ref));
    return absl::OkStatus();
  }

  const VerifyReport& report() const { return report_; }
  // One for each damage.
  const std::vector<std::string>& messages() const { return messages_; }

 private:
  void AddMessage(absl::string_view message) {
    messages_.push_back(absl::StrCat("memory \"", manifest_.name, "\": ", message));
  }

  absl::Status VerifyRows(const Progress& progress) {
    uint64_t read = 0;
    MNEME_RETURN_IF_ERROR(store_.database().VerifyMemory(
        manifest_,
        [&](uint64_t done, uint64_t total) {
          read = done;
          return !progress || progress(static_cast<int64_t>(done), static_cast<int64_t>(total));
        },
        [&](const absl::Status& status) {
          ++report_.damaged_values;
          AddMessage(status.message());
        }));
    report_.bytes_read = static_cast<int64_t>(read);
    if (report_.damaged_values > 0) report_.damaged_memories = 1;
    return absl::OkStatus();
  }

  absl::Status VerifyCodes(const SegmentRef& ref) {
    return ForEachHead(manifest_.card, [&](const LayerCard& layer, int32_t head) {
      KeyCodes codes(layer.key_dim);
      const absl::Status status = ReadHeadCodes(store_.database(), ref.id, layer.layer, head, ref.rows, codes);
      if (status.ok()) report_.bytes_read += HeadCodeBytes(codes, ref.rows);
      if (CannotBeRead(status)) return status;
      if (!absl::IsDataLoss(status)) return absl::OkStatus();
      AddMessage(status.message());
      ++report_.damaged_indexes;
      return absl::OkStatus();
    });
  }

  absl::Status VerifyIndex(const IndexRef& ref) {
    const absl::StatusOr<IndexSpec> spec = ParseIndexSpec(ref.spec);
    if (!spec.ok()) return absl::OkStatus();  // of another build of mneme
    return ForEachHead(manifest_.card, [&](const LayerCard& layer, int32_t head) {
      const absl::StatusOr<std::string> blob = store_.database().GetIndexBlob(ref.id, layer.layer, head);
      absl::Status status = blob.status();
      if (status.ok() && !store_.options().ignore_index_blobs) {
        status = LoadKeyIndex(*spec, *blob, ref.tokens, layer.key_dim).status();
      }
      if (status.ok()) return absl::OkStatus();
      if (CannotBeRead(blob.status())) return status;
      // A message of storage names the blob itself.
      const std::string where = absl::StrCat("index ", ref.id, " layer ", layer.layer, " head ", head, ": ");
      AddMessage(absl::StrCat(blob.ok() ? where : "", status.message()));
      ++report_.damaged_indexes;
      return absl::OkStatus();
    });
  }

  absl::Status VerifyAttachment(const AttachmentRef& ref) {
    const absl::Status status = store_.database().GetAttachment(ref).status();
    if (CannotBeRead(status)) return status;
    if (status.ok()) {
      report_.bytes_read += static_cast<int64_t>(ref.bytes);
      return absl::OkStatus();
    }
    AddMessage(absl::StrCat("attachment \"", ref.name, "\": ", status.message()));
    ++report_.damaged_values;
    report_.damaged_memories = 1;
    return absl::OkStatus();
  }

  StoreContext& store_;
  const MemoryManifest& manifest_;
  VerifyReport report_;
  std::vector<std::string> messages_;
};

// Verifies one memory and adds to `report`. A commit meanwhile can move what is read: then the memory is read again,
// and only damage that stays is damage.
absl::Status VerifyMemory(StoreContext& store, const std::string& name, const Progress& progress,
                          VerifyReport* report) {
  VerifyReport found;
  std::vector<std::string> messages;
  for (int attempt = 1; attempt <= kMaxAttempts; ++attempt) {
    found = {};
    messages.clear();
    const absl::StatusOr<MemoryManifest> manifest = store.database().ReadManifest(name);
    if (absl::IsNotFound(manifest.status())) break;  // dropped meanwhile
    if (CannotBeRead(manifest.status())) return manifest.status();
    if (!manifest.ok()) {
      found = {.memories = 1, .damaged_memories = 1};
      messages.emplace_back(manifest.status().message());
      break;
    }
    ManifestVerifier verifier(store, *manifest);
    MNEME_RETURN_IF_ERROR(verifier.Verify(progress));
    found = verifier.report();
    messages = verifier.messages();
    if (messages.empty()) break;
    const absl::StatusOr<MemoryManifest> now = store.database().ReadManifest(name);
    if (now.ok() && now->generation == manifest->generation) break;
  }
  for (const std::string& message : messages) store.Log(message);
  report->memories += found.memories;
  report->damaged_memories += found.damaged_memories;
  report->damaged_values += found.damaged_values;
  report->damaged_indexes += found.damaged_indexes;
  report->bytes_read += found.bytes_read;
  return absl::OkStatus();
}

}  // namespace

absl::Status VerifyStore(StoreContext& store, const Progress& progress, VerifyReport* report) {
  MNEME_RETURN_IF_ERROR(store.database().CatchUp());
  MNEME_ASSIGN_OR_RETURN(const std::vector<std::string> names, store.database().ListMemories());
  // Each memory's share of the progress is what it has now, however it changes and however often it is read.
  std::vector<int64_t> shares;
  int64_t total = 0;
  for (const std::string& name : names) {
    const absl::StatusOr<MemoryManifest> manifest = store.database().ReadManifest(name);
    shares.push_back(manifest.ok() ? static_cast<int64_t>(StoredBytes(*manifest)) : 0);
    total += shares.back();
  }
  int64_t before = 0, reported = 0;
  for (size_t i = 0; i < names.size(); before += shares[i++]) {
    const auto report_share = [&](int64_t done, int64_t bytes) {
      const double part = static_cast<double>(done) / static_cast<double>(std::max<int64_t>(1, bytes));
      reported = std::max(reported, before + static_cast<int64_t>(part * static_cast<double>(shares[i])));
      return !progress || progress(reported, total);
    };
    MNEME_RETURN_IF_ERROR(VerifyMemory(store, names[i], report_share, report));
  }
  // A bad block counts as damage even if no memory needs a row of it.
  const absl::Status tables = store.database().VerifyTables();
  if (!absl::IsDataLoss(tables)) return tables;
  store.Log(tables.message());
  if (report->damaged_memories + report->damaged_values + report->damaged_indexes == 0) report->damaged_values = 1;
  return absl::OkStatus();
}

}  // namespace mneme
