// SPDX-License-Identifier: Apache-2.0
#include "memory/segment/segment_rows.h"

#include <algorithm>

#include "base/arenas.h"

namespace mneme {
namespace {

template <typename Heads>
size_t HeadsRamBytes(const Heads& heads) {
  // The vector lives in an object with a reference count; each head is an allocation of its own.
  size_t bytes = AllocatedBytes(sizeof(heads) + 2 * sizeof(void*)) + AllocatedBytes(heads.capacity() * sizeof(void*));
  for (const auto& head : heads) bytes += AllocatedBytes(head->MemoryBytes());
  return bytes;
}

}  // namespace

size_t LayerKeys::RamBytes() const {
  return HeadsRamBytes(heads);
}

size_t LayerValues::RamBytes() const {
  return HeadsRamBytes(heads);
}

size_t LayerCodes::RamBytes() const {
  return HeadsRamBytes(heads);
}

std::shared_ptr<LayerCodes> LayerCodes::New(const LayerCard& layer) {
  auto codes = std::make_shared<LayerCodes>();
  codes->heads.reserve(static_cast<size_t>(layer.kv_heads));
  for (int32_t head = 0; head < layer.kv_heads; ++head) {
    codes->heads.push_back(std::make_unique<KeyCodes>(layer.key_dim));
  }
  return codes;
}

int64_t LayerCodes::rows() const {
  int64_t rows = heads.front()->rows();
  for (const auto& head : heads) rows = std::min(rows, head->rows());
  return rows;
}

int64_t TokenBytes(const ModelCard& card, DType dtype) {
  int64_t bytes = sizeof(int64_t) + sizeof(int32_t);
  for (const LayerCard& layer : card.layers) {
    bytes += layer.kv_heads * static_cast<int64_t>(RowBytes(dtype, layer.key_dim) + RowBytes(dtype, layer.value_dim));
  }
  return bytes;
}

}  // namespace mneme
