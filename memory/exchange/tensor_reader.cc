// SPDX-License-Identifier: Apache-2.0
#include "memory/exchange/tensor_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "memory/exchange/checked_json.h"
#include "memory/exchange/tensor_writer.h"
#include "storage/errno_status.h"

namespace mneme {
namespace {

constexpr size_t kLengthBytes = sizeof(uint64_t);
constexpr size_t kMaxParts = 10'000;

// Puts the file in front of an error about what is in it.
absl::Status InFile(const std::string& path, const absl::Status& status) {
  return status.ok() ? status : absl::Status(status.code(), absl::StrCat("path: ", path, ": ", status.message()));
}

absl::Status MalformedError(const std::string& path, absl::string_view what) {
  return InFile(path, absl::InvalidArgumentError(what));
}

}  // namespace

struct TensorReader::File {
  explicit File(std::string file_path) : path(std::move(file_path)) {}
  ~File() {
    if (fd >= 0) close(fd);
  }

  absl::Status Open() {
    fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return FromErrno(errno, absl::StrCat("cannot open ", path));
    struct stat found = {};
    if (fstat(fd, &found) != 0) return FromErrno(errno, absl::StrCat("cannot look at ", path));
    if (!S_ISREG(found.st_mode)) return MalformedError(path, "expected a regular file, got something else");
    size = static_cast<uint64_t>(found.st_size);
    return absl::OkStatus();
  }

  absl::Status ReadAt(uint64_t offset, absl::Span<char> out) const {
    while (!out.empty()) {
      const ssize_t n = pread(fd, out.data(), out.size(), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return FromErrno(errno, absl::StrCat("cannot read ", path));
      if (n == 0) return absl::DataLossError(absl::StrCat("path: ", path, ": the file has become shorter"));
      out.remove_prefix(static_cast<size_t>(n));
      offset += static_cast<uint64_t>(n);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> ReadAll() const {
    if (size > kMaxHeaderBytes) {
      return MalformedError(path, absl::StrCat("expected at most ", kMaxHeaderBytes, " bytes, got ", size));
    }
    std::string text(size, '\0');
    MNEME_RETURN_IF_ERROR(ReadAt(0, absl::MakeSpan(text)));
    return text;
  }

  // Reads the header; sets `data`.
  absl::StatusOr<SafetensorsHeader> ReadHeader() {
    if (size < kLengthBytes) return MalformedError(path, absl::StrCat("expected a header, got ", size, " bytes"));
    unsigned char bytes[kLengthBytes];
    MNEME_RETURN_IF_ERROR(ReadAt(0, absl::MakeSpan(reinterpret_cast<char*>(bytes), kLengthBytes)));
    uint64_t length = 0;
    for (size_t i = 0; i < kLengthBytes; ++i) length |= uint64_t{bytes[i]} << (8 * i);
    if (length > kMaxHeaderBytes || length > size - kLengthBytes) {
      return MalformedError(path, absl::StrCat("expected a header of at most ", kMaxHeaderBytes,
                                               " bytes within the file's ", size, ", got ", length));
    }
    std::string json(length, '\0');
    MNEME_RETURN_IF_ERROR(ReadAt(kLengthBytes, absl::MakeSpan(json)));
    data = kLengthBytes + length;
    absl::StatusOr<SafetensorsHeader> header = ParseHeader(json, size - data);
    if (!header.ok()) return InFile(path, header.status());
    return header;
  }

  const std::string path;
  int fd = -1;
  uint64_t size = 0;
  uint64_t data = 0;  // where the tensors' bytes begin
};

TensorReader::TensorReader() = default;
TensorReader::~TensorReader() = default;

absl::StatusOr<std::unique_ptr<TensorReader>> TensorReader::Open(const std::string& path) {
  std::unique_ptr<TensorReader> reader(new TensorReader());
  std::error_code ignored;
  const bool is_index = absl::EndsWith(path, ".index.json");
  if (!is_index && !std::filesystem::exists(path, ignored) && std::filesystem::exists(IndexName(path), ignored)) {
    MNEME_RETURN_IF_ERROR(reader->OpenIndexed(path, IndexName(path)));
  } else if (is_index) {
    MNEME_RETURN_IF_ERROR(reader->OpenIndexed(path, path));
  } else {
    MNEME_ASSIGN_OR_RETURN(SafetensorsHeader header, reader->AddFile(path));
    reader->metadata_ = std::move(header.metadata);
  }
  return reader;
}

absl::StatusOr<SafetensorsHeader> TensorReader::AddFile(const std::string& path) {
  auto file = std::make_unique<File>(path);
  MNEME_RETURN_IF_ERROR(file->Open());
  MNEME_ASSIGN_OR_RETURN(SafetensorsHeader header, file->ReadHeader());
  for (const TensorEntry& entry : header.tensors) {
    if (!tensors_.emplace(entry.name, Tensor{entry, files_.size()}).second) {
      return MalformedError(path, absl::StrCat("tensor \"", entry.name, "\" is in another file, too"));
    }
  }
  files_.push_back(std::move(file));
  return header;
}

absl::Status TensorReader::OpenIndexed(const std::string& path, const std::string& index_path) {
  File index(index_path);
  MNEME_RETURN_IF_ERROR(index.Open());
  MNEME_ASSIGN_OR_RETURN(const std::string text, index.ReadAll());
  const std::string where = absl::StrCat("path: ", index_path);
  MNEME_ASSIGN_OR_RETURN(const JsonObject json, ParseObject(where, text, 2));
  MNEME_ASSIGN_OR_RETURN(const JsonValue* map, Member(where, json, "weight_map"));
  if (map->object() == nullptr) return MalformedError(index_path, "weight_map: expected an object");
  std::map<std::string, std::string> weight_map;
  std::set<std::string> names;
  for (const auto& [tensor, value] : *map->object()) {
    if (value.text() == nullptr) return MalformedError(index_path, "weight_map: expected names of files");
    const std::string& name = *value.text();
    // Names alone: what lies elsewhere is not the export's.
    if (name.empty() || name == "." || name == ".." || name.find_first_of(std::string("/\0", 2)) != std::string::npos) {
      return MalformedError(index_path, absl::StrCat("weight_map: expected files beside it, got \"", name, "\""));
    }
    names.insert(name);
    weight_map[tensor] = name;
  }
  if (names.empty() || names.size() > kMaxParts) {
    return MalformedError(index_path,
                          absl::StrCat("weight_map: expected 1 to ", kMaxParts, " files, got ", names.size()));
  }
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  for (const std::string& name : names) {
    const std::string part = (folder / name).string();
    MNEME_ASSIGN_OR_RETURN(SafetensorsHeader header, AddFile(part));
    if (files_.size() == 1) {
      metadata_ = std::move(header.metadata);
    } else if (metadata_ != header.metadata) {
      return MalformedError(part, absl::StrCat("expected the metadata of ", files_.front()->path,
                                               ", got other ones: the files are of different exports"));
    }
  }
  return CheckWeightMap(index_path, weight_map);
}

absl::Status TensorReader::CheckWeightMap(const std::string& index_path,
                                          const std::map<std::string, std::string>& weight_map) const {
  for (const auto& [name, file] : weight_map) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end() ||
        std::filesystem::path(files_[found->second.file]->path).filename().string() != file) {
      return MalformedError(index_path, absl::StrCat("weight_map: tensor \"", name, "\" is not in ", file));
    }
  }
  if (weight_map.size() == tensors_.size()) return absl::OkStatus();
  return MalformedError(index_path, absl::StrCat("weight_map: expected the ", tensors_.size(),
                                                 " tensors of the files, got ", weight_map.size()));
}

std::vector<std::string> TensorReader::names() const {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors_) names.push_back(name);
  return names;
}

const TensorEntry* TensorReader::Find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second.entry;
}

absl::Status TensorReader::Read(const std::string& name, uint64_t begin, absl::Span<char> out) const {
  const Tensor& tensor = tensors_.at(name);
  if (begin > tensor.entry.bytes() || out.size() > tensor.entry.bytes() - begin) {
    return absl::InternalError(absl::StrCat("tensor ", name, " is read beyond its end"));
  }
  const File& file = *files_[tensor.file];
  return file.ReadAt(file.data + tensor.entry.begin + begin, out);
}

}  // namespace mneme
