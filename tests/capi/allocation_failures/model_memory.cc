// SPDX-License-Identifier: Apache-2.0
#include "tests/capi/allocation_failures/model_memory.h"

#include <algorithm>
#include <vector>

namespace mneme {
namespace {

void Fill(Tensor& tensor, int32_t layer, int64_t first, int64_t salt) {
  float* out = tensor.data.data();
  for (int64_t token = first; token < first + tensor.shape[0]; ++token) {
    for (int64_t head = 0; head < tensor.shape[1]; ++head) {
      for (int64_t i = 0; i < tensor.shape[2]; ++i) {
        const int64_t number = token * 31 + head * 7 + i * 3 + layer + salt;
        *out++ = static_cast<float>(number % 1009 - 504) / 64;
      }
    }
  }
}

}  // namespace

ModelRows::ModelRows(int32_t layer, int64_t first, int64_t n)
    : layer_(layer), keys_({n, kKvHeads, kKeyDim}), values_({n, kKvHeads, kValueDim}) {
  Fill(keys_, layer, first, 0);
  Fill(values_, layer, first, 500);
}

mneme_status ModelRows::AppendTo(mneme_memory* memory) const {
  mneme_memory_append_args args = MNEME_MEMORY_APPEND_ARGS_INIT;
  args.layer = layer_;
  args.keys = &keys_.view;
  args.values = &values_.view;
  return mneme_memory_append(memory, &args);
}

std::string WrongRows(mneme_memory* memory) {
  const mneme_memory_info info = InfoOf(memory);
  const int64_t begin = std::max(info.pinned_tokens, info.first_kept), n = info.next_token - begin;
  if (n <= 0) return "";
  for (const int32_t layer : {kLayer, kOtherLayer}) {
    Tensor keys({n, kKvHeads, kKeyDim}), values({n, kKvHeads, kValueDim});
    mneme_memory_read_args read = MNEME_MEMORY_READ_ARGS_INIT;
    read.layer = layer;
    read.begin = begin;
    read.tokens = n;
    read.keys = &keys.view;
    read.values = &values.view;
    if (mneme_memory_read(memory, &read) != MNEME_OK) return std::string("cannot be read: ") + mneme_last_error();
    Tensor wanted_keys({n, kKvHeads, kKeyDim}), wanted_values({n, kKvHeads, kValueDim});
    Fill(wanted_keys, layer, begin, 0);
    Fill(wanted_values, layer, begin, 500);
    if (keys.data != wanted_keys.data) return "keys of layer " + std::to_string(layer);
    if (values.data != wanted_values.data) return "values of layer " + std::to_string(layer);
  }
  return "";
}

}  // namespace mneme
