// SPDX-License-Identifier: Apache-2.0
#include "memory/segment/index_run.h"

#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

#include "base/status.h"

namespace mneme {

IndexRun::IndexRun(IndexId id, int64_t first_token, int64_t tokens, IndexSpec spec, const ModelCard& card,
                   Database* database, IndexCounters* counters, Options options)
    : id_(id),
      first_token_(first_token),
      tokens_(tokens),
      spec_(std::move(spec)),
      cards_(card.layers),
      database_(database),
      counters_(counters),
      options_(std::move(options)) {
  size_t heads = 0;
  for (const LayerCard& layer : cards_) {
    first_of_layer_.push_back(heads);
    heads += static_cast<size_t>(layer.kv_heads);
  }
  heads_ = std::make_unique<Head[]>(heads);
}

absl::StatusOr<std::shared_ptr<const KeyIndex>> IndexRun::Get(size_t layer, int32_t head, KeySource keys) {
  Head& place = Place(layer, head);
  MutexLock lock(&place.mutex);
  if (place.index != nullptr) return place.index;
  if (options_.trust_blobs) {
    if (std::shared_ptr<const KeyIndex> index = LoadBlob(layer, head)) {
      ++counters_->loaded;
      Keep(place, std::move(index));
      return place.index;
    }
  }
  ++counters_->rebuilt;
  return BuildLocked(layer, head, keys, /*write_must_succeed=*/false, place);
}

std::shared_ptr<const KeyIndex> IndexRun::LoadBlob(size_t layer, int32_t head) const {
  const absl::StatusOr<std::string> blob = database_->GetIndexBlob(id_, cards_[layer].layer, head);
  absl::Status status = blob.status();
  if (blob.ok()) {
    absl::StatusOr<std::unique_ptr<KeyIndex>> index = LoadKeyIndex(spec_, *blob, tokens_, cards_[layer].key_dim);
    if (index.ok()) return *std::move(index);
    status = index.status();
  }
  options_.log(absl::StrCat("index ", id_, " layer ", cards_[layer].layer, " head ", head,
                            " is built again from its rows: ", status.message()));
  return nullptr;
}

absl::Status IndexRun::Build(size_t layer, int32_t head, KeySource keys) {
  Head& place = Place(layer, head);
  MutexLock lock(&place.mutex);
  return BuildLocked(layer, head, keys, /*write_must_succeed=*/true, place).status();
}

absl::StatusOr<std::shared_ptr<const KeyIndex>> IndexRun::BuildLocked(size_t layer, int32_t head, KeySource keys,
                                                                      bool write_must_succeed, Head& place) {
  const int64_t dim = cards_[layer].key_dim;
  std::vector<float> rows(static_cast<size_t>(tokens_ * dim));
  MNEME_RETURN_IF_ERROR(keys(layer, head, rows.data()));
  MNEME_ASSIGN_OR_RETURN(std::unique_ptr<KeyIndex> index, BuildKeyIndex(spec_, rows.data(), tokens_, dim));
  ++counters_->built;
  if (options_.write_blobs) {
    MNEME_ASSIGN_OR_RETURN(const std::string blob, index->Serialize());
    const absl::Status status = database_->PutIndexBlob(id_, cards_[layer].layer, head, blob);
    if (write_must_succeed) MNEME_RETURN_IF_ERROR(status);
    // A query goes on without the copy on disk.
    if (!status.ok()) options_.log(absl::StrCat("index ", id_, " cannot be written: ", status.message()));
  }
  Keep(place, std::move(index));
  return place.index;
}

void IndexRun::Keep(Head& place, std::shared_ptr<const KeyIndex> index) {
  if (IsGpuKind(spec_.kind)) {
    const std::string where = index->Where();
    // Logged once a run: the reason is the same for all of its indices.
    if (!absl::StartsWith(where, "cuda:") && !cpu_search_logged_.exchange(true)) {
      options_.log(absl::StrCat("index ", id_, ", ", FormatIndexSpec(spec_), ", is searched by the CPU: ", where));
    }
  }
  bytes_ += index->MemoryBytes();
  if (place.index != nullptr) bytes_ -= place.index->MemoryBytes();
  place.index = std::move(index);
}

std::vector<TokenRange> PlanIndexRuns(int64_t sealed_end, int64_t unit) {
  std::vector<TokenRange> plan;
  int64_t begin = 0;
  while (begin + unit <= sealed_end) {
    int64_t size = unit;
    while (begin % (4 * size) == 0 && begin + 4 * size <= sealed_end) size *= 4;
    plan.push_back({begin, begin + size});
    begin += size;
  }
  return plan;
}

}  // namespace mneme
