// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_EXCHANGE_SAFETENSORS_H_
#define MNEME_MEMORY_EXCHANGE_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace mneme {

// The header of a file in the format safetensors (Hugging Face): u64 length, little-endian; that many bytes of JSON;
// the tensors' bytes, row-major and little-endian. The JSON object has one entry for each tensor, and "__metadata__"
// with texts by name. Tensors cover the bytes behind the header without holes.

// One tensor of a file.
struct TensorEntry {
  std::string name;
  std::string dtype;  // "F32", "F16", "BF16", "I8", "I64", "I32", "U8"
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // of its bytes, counted from the end of the header
  uint64_t end = 0;

  uint64_t bytes() const { return end - begin; }
};

struct SafetensorsHeader {
  std::map<std::string, std::string> metadata;
  std::vector<TensorEntry> tensors;  // in the order of their bytes
};

// No header is longer; the JSON of one takes several times its size in memory.
inline constexpr uint64_t kMaxHeaderBytes = uint64_t{16} << 20;

// Returns: the bytes of one element, 0 for a type that mneme does not use.
int64_t ElementBytes(absl::string_view dtype);

// Returns: "F16 [3, 2, 64]".
std::string DescribeTensor(absl::string_view dtype, const std::vector<int64_t>& shape);

// Returns: the length and the JSON, padded by spaces to a multiple of 8 bytes.
// Requires: all texts are UTF-8.
std::string FormatHeader(const SafetensorsHeader& header);

// Reads the JSON of a file that has `data_bytes` bytes behind its header. The JSON may be anything.
// Errors: InvalidArgument, which names the tensor, what was expected and what came.
absl::StatusOr<SafetensorsHeader> ParseHeader(absl::string_view json, uint64_t data_bytes);

}  // namespace mneme

#endif  // MNEME_MEMORY_EXCHANGE_SAFETENSORS_H_
