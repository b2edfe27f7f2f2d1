// SPDX-License-Identifier: Apache-2.0
#include "absl/strings/str_cat.h"

#include "index/faiss/faiss_gpu.h"

namespace mneme {
namespace {

absl::Status NotBuiltIn() {
  return absl::UnimplementedError(absl::StrCat("a device takes ", MissingForGpuKind(IndexKind::kGpuFlat)));
}

}  // namespace

std::string MissingForGpuKind(IndexKind kind) {
  return absl::StrCat("a FAISS with GPU support", kind == IndexKind::kGpuCagra ? " and cuVS" : "",
                      ", this build's FAISS ", FaissVersion(), " has none");
}

std::string GpuNote() {
  return "";
}

absl::Status GpuDevice() {
  return NotBuiltIn();
}

std::unique_ptr<faiss::Index> MakeGpuAssigner(const IndexSpec&, int64_t) {
  return nullptr;
}

absl::StatusOr<std::unique_ptr<KeyIndex>> CopyToGpu(const IndexSpec&, const FaissShape&, const KeyCenter&,
                                                    faiss::Index&) {
  return NotBuiltIn();
}

}  // namespace mneme
