// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_EXCHANGE_OUTPUT_FILE_H_
#define MNEME_MEMORY_EXCHANGE_OUTPUT_FILE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace mneme {

// A file that appears under its name when it is complete. Until then it is called PATH.part; a killed process leaves
// that, and the next one takes it over. The destructor removes what is not kept. Belongs to one thread.
class OutputFile {
 public:
  // Errors: AlreadyExists where `path` is there and `overwrite` is not set; Aborted while another process writes
  // PATH.part; those of errno.
  static absl::StatusOr<std::unique_ptr<OutputFile>> Create(const std::string& path, bool overwrite);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  absl::Status WriteAt(uint64_t offset, const char* data, size_t size);
  // Makes the content durable. The name is durable after Folder::Sync.
  absl::Status Sync();
  // Gives the file its name.
  absl::Status Publish();
  // The file stays, whatever happens. Until then the destructor removes it, unless it has replaced another one.
  void Keep() noexcept { kept_ = true; }

 private:
  OutputFile(std::string path, bool overwrite)
      : path_(std::move(path)), part_(path_ + ".part"), overwrite_(overwrite) {}

  const std::string path_;
  const std::string part_;
  const bool overwrite_;
  int fd_ = -1;
  bool owns_part_ = false;
  bool published_ = false;
  bool kept_ = false;
};

// The folder of a file, open so that the names in it can be made durable.
class Folder {
 public:
  static absl::StatusOr<std::unique_ptr<Folder>> OpenOf(const std::string& path);
  ~Folder();
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  absl::Status Sync();

 private:
  explicit Folder(std::string path) : path_(std::move(path)) {}

  const std::string path_;
  int fd_ = -1;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_EXCHANGE_OUTPUT_FILE_H_
