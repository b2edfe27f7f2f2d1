// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/src/gguf_file.h"

#include <algorithm>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <vector>

#include "gguf.h"

namespace mneme::llama {
namespace {

constexpr size_t kPiece = 4096;
constexpr size_t kPiecesATensor = 16;

// FNV-1a over 8-byte words, with a final mix (splitmix64).
class Hash {
 public:
  void Add(const char* data, size_t size) {
    for (size_t i = 0; i < size; i += 8) {
      uint64_t word = 0;
      for (size_t j = 0; j < std::min<size_t>(8, size - i); ++j) {
        word |= static_cast<uint64_t>(static_cast<unsigned char>(data[i + j])) << (8 * j);
      }
      Add(word);
    }
  }
  void Add(uint64_t word) {
    state_ = (state_ ^ word) * 0x100000001b3ull;
    state_ ^= state_ >> 29;
  }
  uint64_t Value() const {
    uint64_t x = state_;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
  }

 private:
  uint64_t state_ = 0xcbf29ce484222325ull;
};

class File {
 public:
  explicit File(const std::string& path) : stream_(path, std::ios::binary) {}

  bool Size(uint64_t* size) {
    stream_.seekg(0, std::ios::end);
    *size = static_cast<uint64_t>(stream_.tellg());
    return static_cast<bool>(stream_);
  }
  bool Read(uint64_t offset, size_t size, std::vector<char>* out) {
    out->resize(size);
    stream_.seekg(static_cast<std::streamoff>(offset));
    stream_.read(out->data(), static_cast<std::streamsize>(size));
    return static_cast<bool>(stream_);
  }

 private:
  std::ifstream stream_;
};

bool HashTensor(File& file, uint64_t offset, size_t size, Hash* hash) {
  std::vector<char> bytes;
  if (size <= kPiece * kPiecesATensor) {
    if (!file.Read(offset, size, &bytes)) return false;
    hash->Add(bytes.data(), bytes.size());
    return true;
  }
  for (size_t i = 0; i < kPiecesATensor; ++i) {
    if (!file.Read(offset + (size - kPiece) / (kPiecesATensor - 1) * i, kPiece, &bytes)) return false;
    hash->Add(bytes.data(), bytes.size());
  }
  return true;
}

}  // namespace

Status ReadFingerprint(const std::string& path, std::string* fingerprint) {
  const std::unique_ptr<gguf_context, decltype(&gguf_free)> gguf(
      gguf_init_from_file(path.c_str(), gguf_init_params{/*no_alloc=*/true, /*ctx=*/nullptr}), &gguf_free);
  if (gguf == nullptr) return {MNEME_STATUS_NOT_FOUND, "model_path '" + path + "' cannot be read as a GGUF file"};

  const Status unreadable(MNEME_STATUS_UNAVAILABLE, "model_path '" + path + "' ends before its tensors do");
  File file(path);
  Hash hash;
  uint64_t size = 0;
  std::vector<char> bytes;
  const size_t data_offset = gguf_get_data_offset(gguf.get());
  if (!file.Size(&size) || !file.Read(0, data_offset, &bytes)) return unreadable;
  hash.Add(size);
  hash.Add(bytes.data(), bytes.size());
  for (int64_t i = 0; i < gguf_get_n_tensors(gguf.get()); ++i) {
    const uint64_t offset = data_offset + gguf_get_tensor_offset(gguf.get(), i);
    const size_t tensor_size = gguf_get_tensor_size(gguf.get(), i);
    if (!HashTensor(file, offset, tensor_size, &hash)) return unreadable;
  }
  char text[32];
  std::snprintf(text, sizeof(text), "gguf-%016" PRIx64, hash.Value());
  *fingerprint = text;
  return Status();
}

}  // namespace mneme::llama
