// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_INDEX_RECORDED_QK_H_
#define MNEME_TESTS_INDEX_RECORDED_QK_H_

#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

namespace mneme {

// Queries and keys recorded from a real model. File, little endian: magic "MNEMEQK1", int32 layers, then per
// layer: int32 layer, q_heads, kv_heads, dim, rows, queries; keys f32 [kv_heads][rows][dim];
// queries f32 [q_heads][queries][dim].
// The inner product of a query and a key is the score (mneme-llama record: unrotated keys, rotated and scaled queries).
struct RecordedLayer {
  int32_t layer = 0;
  int32_t query_heads = 0;
  int32_t kv_heads = 0;
  int32_t dim = 0;
  int32_t rows = 0;
  int32_t queries = 0;
  std::vector<float> key_values;
  std::vector<float> query_values;

  // f32 [rows, dim] of one KV head; [queries, dim] of one query head.
  const float* Keys(int32_t kv_head) const {
    return key_values.data() + static_cast<size_t>(kv_head) * static_cast<size_t>(rows) * static_cast<size_t>(dim);
  }
  const float* Queries(int32_t query_head) const {
    return query_values.data() +
           static_cast<size_t>(query_head) * static_cast<size_t>(queries) * static_cast<size_t>(dim);
  }
};

// Reads `path`; false, with the reason in *error, if it cannot be read or makes no sense.
inline bool ReadRecordedQk(const std::string& path, std::vector<RecordedLayer>* layers, std::string* error) {
  layers->clear();
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    *error = path + ": cannot be opened";
    return false;
  }
  const auto read = [&file](void* to, size_t bytes) {
    return static_cast<bool>(file.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes)));
  };
  char magic[8];
  int32_t count = 0;
  if (!read(magic, sizeof(magic)) || std::memcmp(magic, "MNEMEQK1", sizeof(magic)) != 0 || !read(&count, 4) ||
      count < 0 || count > 10'000) {
    *error = path + ": is no recording of queries and keys";
    return false;
  }
  for (int32_t i = 0; i < count; ++i) {
    int32_t head[6];
    if (!read(head, sizeof(head))) {
      *error = path + ": ends within layer " + std::to_string(i);
      return false;
    }
    for (int field = 1; field < 6; ++field) {
      if (head[field] < 1 || head[field] > (1 << 24)) {
        *error = path + ": layer " + std::to_string(i) + " has sizes that make no sense";
        return false;
      }
    }
    RecordedLayer layer{head[0], head[1], head[2], head[3], head[4], head[5], {}, {}};
    layer.key_values.resize(static_cast<size_t>(layer.kv_heads) * static_cast<size_t>(layer.rows) *
                            static_cast<size_t>(layer.dim));
    layer.query_values.resize(static_cast<size_t>(layer.query_heads) * static_cast<size_t>(layer.queries) *
                              static_cast<size_t>(layer.dim));
    if (!read(layer.key_values.data(), layer.key_values.size() * sizeof(float)) ||
        !read(layer.query_values.data(), layer.query_values.size() * sizeof(float))) {
      *error = path + ": ends within layer " + std::to_string(i);
      return false;
    }
    layers->push_back(std::move(layer));
  }
  return true;
}

}  // namespace mneme

#endif  // MNEME_TESTS_INDEX_RECORDED_QK_H_
