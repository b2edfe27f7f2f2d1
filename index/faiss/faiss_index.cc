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
  FaissIndex(FaissShape shape, KeyCenter center, std::unique_ptr<faiss::Index> index, std::string where)
      : shape_(shape), center_(std::move(center)), index_(std::move(index)), where_(std::move(where)) {}

  int64_t rows() const override { return index_->ntotal; }
  int64_t dim() const override { return center_.dim(); }
  bool exact() const override { return IsExact(shape_); }
  std::string Where() const override { return where_; }

  absl::Status Search(const float* queries, int64_t count, int64_t fetch, int64_t* rows) const override {
    MNEME_RETURN_IF_ERROR(CheckSearch(queries, count, fetch, dim()));
    if (count == 0 || fetch == 0) return absl::OkStatus();
    const int64_t found = std::min(fetch, index_->ntotal);
    return CallFaiss(shape_.Text(), [&] {
      std::vector<float> scores(static_cast<size_t>(count * found));
      std::vector<int64_t> labels(static_cast<size_t>(count * found));
      index_->search(count, queries, found, scores.data(), labels.data());
      PadRows(labels.data(), count, found, fetch, rows);
    });
  }

  absl::StatusOr<std::string> Serialize() const override { return WriteFaissBlob(shape_, center_, *index_); }

  size_t MemoryBytes() const override {
    return sizeof(*this) + center_.mean.size() * sizeof(float) + StructureBytes(*index_);
  }

 private:
  const FaissShape shape_;
  const KeyCenter center_;
  const std::unique_ptr<faiss::Index> index_;
  const std::string where_;
};

// Makes the index of `spec` over a structure on the host: on the device if the spec asks for it and the device takes
// it, else on the host.
absl::StatusOr<std::unique_ptr<KeyIndex>> PlaceIndex(const IndexSpec& spec, const FaissShape& shape,
                                                     FaissBlob structure) {
  SetSearch(*structure.index, shape, spec);
  std::string where = "host";
  if (IsGpuKind(spec.kind)) {
    absl::Status status = GpuDevice();
    if (status.ok()) {
      absl::StatusOr<std::unique_ptr<KeyIndex>> on_device = CopyToGpu(spec, shape, structure.center, *structure.index);
      if (on_device.ok()) return on_device;
      status = on_device.status();
    }
    absl::StrAppend(&where, " (", status.message(), ")");
  }
  return std::make_unique<FaissIndex>(shape, std::move(structure.center), std::move(structure.index), std::move(where));
}

}  // namespace

absl::StatusOr<std::unique_ptr<KeyIndex>> BuildFaissIndex(const IndexSpec& spec, const float* keys, int64_t rows,
                                                          int64_t dim) {
  MNEME_ASSIGN_OR_RETURN(const FaissShape shape, ResolveShape(spec, rows, dim));
  FaissBlob built;
  const auto build = [&](bool on_device) {
    return CallFaiss(shape.Text(), [&] {
      built.center = ComputeKeyCenter(shape, keys, rows, dim);
      std::vector<float> centered = built.center.Center(keys, rows);
      if (!IsExact(shape)) ScaleKeys(centered);
      std::unique_ptr<faiss::Index> assigner;
      if (on_device) assigner = MakeGpuAssigner(spec, dim);
      built.index = BuildStructure(shape, centered, rows, dim, assigner.get());
    });
  };
  // Training on a device is only faster; if it fails there, it is done on the host.
  const bool trained =
      IsGpuKind(spec.kind) && shape.family == FaissShape::Family::kIvf && GpuDevice().ok() && build(true).ok();
  if (!trained) MNEME_RETURN_IF_ERROR(build(false));
  return PlaceIndex(spec, shape, std::move(built));
}

absl::StatusOr<std::unique_ptr<KeyIndex>> LoadFaissIndex(const IndexSpec& spec, absl::string_view blob, int64_t rows,
                                                         int64_t dim) {
  MNEME_ASSIGN_OR_RETURN(const FaissShape shape, ResolveShape(spec, rows, dim));
  MNEME_ASSIGN_OR_RETURN(FaissBlob read, ReadFaissBlob(shape, blob, rows, dim));
  return PlaceIndex(spec, shape, std::move(read));
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
