// SPDX-License-Identifier: Apache-2.0
#include "memory/exchange/tensor_writer.h"

#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"

#include "base/status.h"
#include "memory/exchange/checked_json.h"

namespace mneme {
namespace {

constexpr absl::string_view kSuffix = ".safetensors";

}  // namespace

std::string PartName(const std::string& path, size_t part, size_t parts) {
  if (parts == 1) return path;
  return absl::StrCat(path.substr(0, path.size() - kSuffix.size()), "-", absl::Dec(part + 1, absl::kZeroPad5), "-of-",
                      absl::Dec(parts, absl::kZeroPad5), kSuffix);
}

std::string IndexName(const std::string& path) {
  return path + ".index.json";
}

absl::StatusOr<std::unique_ptr<TensorWriter>> TensorWriter::Create(const Options& options,
                                                                   std::vector<TensorEntry> tensors,
                                                                   const Metadata& metadata) {
  if (!absl::EndsWith(options.path, kSuffix) || options.path.size() == kSuffix.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("path: expected a name that ends in \"", kSuffix, "\", got \"", options.path, "\""));
  }
  std::unique_ptr<TensorWriter> writer(new TensorWriter(options));
  MNEME_ASSIGN_OR_RETURN(writer->folder_, Folder::OpenOf(options.path));
  writer->PlaceTensors(std::move(tensors));
  const size_t parts = writer->parts_.size();
  for (size_t part = 0; part < parts; ++part) {
    writer->parts_[part].header_bytes = writer->HeaderOf(part, metadata).size();
    MNEME_ASSIGN_OR_RETURN(writer->parts_[part].file,
                           OutputFile::Create(PartName(options.path, part, parts), options.overwrite));
  }
  if (parts > 1) {
    MNEME_ASSIGN_OR_RETURN(writer->index_, OutputFile::Create(IndexName(options.path), options.overwrite));
  }
  return writer;
}

void TensorWriter::PlaceTensors(std::vector<TensorEntry> tensors) {
  parts_.emplace_back();
  for (TensorEntry& entry : tensors) {
    uint64_t bytes = static_cast<uint64_t>(ElementBytes(entry.dtype));
    for (const int64_t dim : entry.shape) bytes *= static_cast<uint64_t>(dim);
    if (parts_.back().bytes > 0 && parts_.back().bytes + bytes > options_.max_file_bytes) parts_.emplace_back();
    entry.begin = parts_.back().bytes;
    entry.end = entry.begin + bytes;
    parts_.back().bytes = entry.end;
    bytes_ += bytes;
    tensors_.push_back({.entry = std::move(entry), .part = parts_.size() - 1, .written = 0, .hash = {}});
  }
}

std::string TensorWriter::HeaderOf(size_t part, const Metadata& metadata) const {
  SafetensorsHeader header{.metadata = metadata, .tensors = {}};
  for (const Tensor& tensor : tensors_) {
    if (tensor.part == part) header.tensors.push_back(tensor.entry);
  }
  return FormatHeader(header);
}

std::string TensorWriter::IndexText() const {
  std::vector<std::string> members;
  for (const Tensor& tensor : tensors_) {
    const std::string name = PartName(options_.path, tensor.part, parts_.size());
    members.push_back(absl::StrCat("    ", JsonText(tensor.entry.name), ": ",
                                   JsonText(std::filesystem::path(name).filename().string())));
  }
  return absl::StrCat("{\n  \"metadata\": {\"total_size\": ", bytes_, "},\n  \"weight_map\": {\n",
                      absl::StrJoin(members, ",\n"), "\n  }\n}\n");
}

absl::Status TensorWriter::Append(size_t tensor, absl::Span<const char> bytes) {
  Tensor& to = tensors_[tensor];
  if (bytes.size() > to.entry.bytes() - to.written) {
    return absl::InternalError(absl::StrCat("tensor ", to.entry.name, " gets more bytes than it has"));
  }
  Part& part = parts_[to.part];
  MNEME_RETURN_IF_ERROR(
      part.file->WriteAt(part.header_bytes + to.entry.begin + to.written, bytes.data(), bytes.size()));
  to.written += bytes.size();
  to.hash.Add(bytes.data(), bytes.size());
  return absl::OkStatus();
}

std::map<std::string, uint64_t> TensorWriter::Checksums() const {
  std::map<std::string, uint64_t> checksums;
  for (const Tensor& tensor : tensors_) checksums[tensor.entry.name] = tensor.hash.value();
  return checksums;
}

absl::Status TensorWriter::Publish(const Metadata& metadata) {
  for (const Tensor& tensor : tensors_) {
    if (tensor.written == tensor.entry.bytes()) continue;
    return absl::InternalError(absl::StrCat("tensor ", tensor.entry.name, " is not complete"));
  }
  for (size_t i = 0; i < parts_.size(); ++i) {
    const std::string header = HeaderOf(i, metadata);
    if (header.size() != parts_[i].header_bytes) return absl::InternalError("the header has changed its size");
    MNEME_RETURN_IF_ERROR(parts_[i].file->WriteAt(0, header.data(), header.size()));
    MNEME_RETURN_IF_ERROR(parts_[i].file->Sync());
  }
  if (index_ != nullptr) {
    const std::string text = IndexText();
    MNEME_RETURN_IF_ERROR(index_->WriteAt(0, text.data(), text.size()));
    MNEME_RETURN_IF_ERROR(index_->Sync());
  }
  for (Part& part : parts_) MNEME_RETURN_IF_ERROR(part.file->Publish());
  if (index_ != nullptr) {
    MNEME_RETURN_IF_ERROR(folder_->Sync());
    MNEME_RETURN_IF_ERROR(index_->Publish());
  }
  MNEME_RETURN_IF_ERROR(folder_->Sync());
  for (Part& part : parts_) part.file->Keep();
  if (index_ != nullptr) index_->Keep();
  return absl::OkStatus();
}

}  // namespace mneme
