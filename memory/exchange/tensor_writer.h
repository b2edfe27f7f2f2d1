// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_EXCHANGE_TENSOR_WRITER_H_
#define MNEME_MEMORY_EXCHANGE_TENSOR_WRITER_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "base/content_hash.h"
#include "memory/exchange/output_file.h"
#include "memory/exchange/safetensors.h"

namespace mneme {

// Names of the files of an export to `path`, which ends in ".safetensors", as Hugging Face has them: for
// "m.safetensors" the parts "m-00001-of-00002.safetensors" and so on, and "m.safetensors.index.json".
std::string PartName(const std::string& path, size_t part, size_t parts);
std::string IndexName(const std::string& path);

// Writes tensors into one safetensors file, or into several with an index file. The files get their names when all is
// written and durable, the index file last. Belongs to one thread.
class TensorWriter {
 public:
  using Metadata = std::map<std::string, std::string>;

  struct Options {
    std::string path;
    bool overwrite = false;
    uint64_t max_file_bytes = 0;  // of the tensors in a file; a larger tensor has a file of its own
  };

  // Lays out `tensors` (names, types and shapes) and creates the files. `metadata` has the size that Publish's will
  // have. Errors: InvalidArgument (path); those of OutputFile.
  static absl::StatusOr<std::unique_ptr<TensorWriter>> Create(const Options& options, std::vector<TensorEntry> tensors,
                                                              const Metadata& metadata);

  // Appends bytes to tensor number `tensor`.
  absl::Status Append(size_t tensor, absl::Span<const char> bytes);
  // Returns: the hash of what was appended to each tensor.
  std::map<std::string, uint64_t> Checksums() const;
  // Requires: every tensor is complete.
  absl::Status Publish(const Metadata& metadata);

  // Of all tensors.
  uint64_t bytes() const { return bytes_; }

 private:
  struct Tensor {
    TensorEntry entry;
    size_t part = 0;
    uint64_t written = 0;
    ContentHash hash;
  };
  struct Part {
    uint64_t header_bytes = 0;
    uint64_t bytes = 0;  // of its tensors
    std::unique_ptr<OutputFile> file;
  };

  explicit TensorWriter(Options options) : options_(std::move(options)) {}
  void PlaceTensors(std::vector<TensorEntry> tensors);
  std::string HeaderOf(size_t part, const Metadata& metadata) const;
  std::string IndexText() const;

  const Options options_;
  std::vector<Tensor> tensors_;
  std::vector<Part> parts_;
  std::unique_ptr<OutputFile> index_;  // null: one part
  std::unique_ptr<Folder> folder_;
  uint64_t bytes_ = 0;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_EXCHANGE_TENSOR_WRITER_H_
