// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_EXCHANGE_TENSOR_READER_H_
#define MNEME_MEMORY_EXCHANGE_TENSOR_READER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

#include "memory/exchange/safetensors.h"

namespace mneme {

// The tensors of one safetensors file, or of several with an index file (TensorWriter has the names). The files may be
// anybody's: nothing in them is believed before it is checked. Belongs to one thread.
class TensorReader {
 public:
  // Reads the headers. `path` is a file, or where there is none, what its index file is called after.
  // Errors: NotFound; InvalidArgument, which names file and tensor; those of errno.
  static absl::StatusOr<std::unique_ptr<TensorReader>> Open(const std::string& path);
  ~TensorReader();

  // Of the first file; all files have the same.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // By name.
  std::vector<std::string> names() const;
  // Returns: null if there is no such tensor.
  const TensorEntry* Find(const std::string& name) const;

  // Reads bytes [begin, begin + out.size()) of a tensor.
  // Errors: DataLoss if the file has become shorter; those of errno.
  absl::Status Read(const std::string& name, uint64_t begin, absl::Span<char> out) const;

 private:
  struct File;
  struct Tensor {
    TensorEntry entry;
    size_t file = 0;
  };

  TensorReader();
  // Returns the header of a file, and adds its tensors.
  absl::StatusOr<SafetensorsHeader> AddFile(const std::string& path);
  absl::Status OpenIndexed(const std::string& path, const std::string& index_path);
  // Checks that the index file says of each tensor what is so.
  absl::Status CheckWeightMap(const std::string& index_path,
                              const std::map<std::string, std::string>& weight_map) const;

  std::map<std::string, std::string> metadata_;
  std::map<std::string, Tensor> tensors_;
  std::vector<std::unique_ptr<File>> files_;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_EXCHANGE_TENSOR_READER_H_
