// SPDX-License-Identifier: Apache-2.0
#include "index/faiss/faiss_index.h"

#include <faiss/Index.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "index/faiss/faiss_blob.h"
#include "index/faiss/faiss_call.h"
#include "index/faiss/faiss_gpu.h"
#include "index/faiss/faiss_structure.h"

namespace mneme {
namespace {

class FaissIndex final : public KeyIndex {
 public:
  FaissIndex(FaissShape shape, KeySpace space, std::unique_ptr<faiss::Index> index, std::string where)
      : shape_(shape), space_(std::move(space)), index_(std::move(index)), where_(std::move(where)) {}

  int64_t rows() const override { return index_->ntotal; }
  int64_t dim() const override { return space_.dim(); }
  bool exact() const override { return IsExact(shape_); }
  std::string Where() const override { return where_; }

  absl::Status Search(const float* queries, int64_t count, int64_t fetch, int64_t* rows) const override {
    MNEME_RETURN_IF_ERROR(CheckSearch(queries, count, fetch, dim()));
    if (count == 0 || fetch == 0) return absl::OkStatus();
    const int64_t found = std::min(fetch, index_->ntotal);
    return Guarded(shape_.Text(), [&] {
      std::vector<float> scores(static_cast<size_t>(count * found));
      std::vector<int64_t> labels(static_cast<size_t>(count * found));
      index_->search(count, queries, found, scores.data(), labels.data());
      PadRows(labels.data(), count, found, fetch, rows);
    });
  }

  absl::StatusOr<std::string> Serialize() const override { return WriteFaissBlob(shape_, space_, *index_); }

  size_t MemoryBytes() const override {
    return sizeof(*this) + space_.mean.size() * sizeof(float) + StructureBytes(*index_);
  }

 private:
  const FaissShape shape_;
  const KeySpace space_;
  const std::unique_ptr<faiss::Index> index_;
  const std::string where_;
};

// The index of `spec` over a structure on the host: there, or on the device if the spec asks for it and one takes it.
absl::StatusOr<std::unique_ptr<KeyIndex>> Place(const IndexSpec& spec, const FaissShape& shape, FaissBlob structure) {
  SetSearch(*structure.index, shape, spec);
  std::string where = "host";
  if (IsGpuKind(spec.kind)) {
    absl::Status status = GpuDevice();
    if (status.ok()) {
      absl::StatusOr<std::unique_ptr<KeyIndex>> on_device = CopyToGpu(spec, shape, structure.space, *structure.index);
      if (on_device.ok()) return on_device;
      status = on_device.status();
    }
    absl::StrAppend(&where, " (", status.message(), ")");
  }
  return std::make_unique<FaissIndex>(shape, std::move(structure.space), std::move(structure.index), std::move(where));
}

}  // namespace

absl::StatusOr<std::unique_ptr<KeyIndex>> BuildFaissIndex(const IndexSpec& spec, const float* keys, int64_t rows,
                                                          int64_t dim) {
  MNEME_ASSIGN_OR_RETURN(const FaissShape shape, ResolveShape(spec, rows, dim));
  FaissBlob built;
  const auto build = [&](bool on_device) {
    return Guarded(shape.Text(), [&] {
      built.space = MakeSpace(shape, keys, rows, dim);
      std::vector<float> centered = built.space.Center(keys, rows);
      if (!IsExact(shape)) ScaleKeys(centered);
      std::unique_ptr<faiss::Index> assigner;
      if (on_device) assigner = MakeGpuAssigner(spec, dim);
      built.index = BuildStructure(shape, centered, rows, dim, assigner.get());
    });
  };
  // Training on a device is faster, nothing else: what fails there is done here.
  const bool trained =
      IsGpuKind(spec.kind) && shape.family == FaissShape::Family::kIvf && GpuDevice().ok() && build(true).ok();
  if (!trained) MNEME_RETURN_IF_ERROR(build(false));
  return Place(spec, shape, std::move(built));
}

absl::StatusOr<std::unique_ptr<KeyIndex>> LoadFaissIndex(const IndexSpec& spec, absl::string_view blob, int64_t rows,
                                                         int64_t dim) {
  MNEME_ASSIGN_OR_RETURN(const FaissShape shape, ResolveShape(spec, rows, dim));
  MNEME_ASSIGN_OR_RETURN(FaissBlob read, ReadFaissBlob(shape, blob, rows, dim));
  return Place(spec, shape, std::move(read));
}

absl::string_view FaissVersion() {
#define MNEME_TEXT_(x) #x
#define MNEME_TEXT(x) MNEME_TEXT_(x)
  constexpr absl::string_view kVersion =
      MNEME_TEXT(FAISS_VERSION_MAJOR) "." MNEME_TEXT(FAISS_VERSION_MINOR) "." MNEME_TEXT(FAISS_VERSION_PATCH);
#undef MNEME_TEXT
#undef MNEME_TEXT_
  static const auto* const text = new std::string(absl::StrCat(kVersion, GpuNote()));
  return *text;
}

}  // namespace mneme
