// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BENCH_HOST_H_
#define MNEME_BENCH_HOST_H_

// What measurements through the C ABI have in common. Errors end the process with their message.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include "base/temporary_folder.h"
#include "mneme.h"

namespace mneme {

inline void Check(mneme_status status) {
  if (status == MNEME_OK) return;
  std::fprintf(stderr, "%s: %s\n", mneme_status_name(status), mneme_last_error());
  std::exit(1);
}

// A field of a file of "name: number" lines, as those of /proc are; -1: it has none.
inline int64_t ProcField(const char* path, const std::string& name) {
  std::ifstream file(path);
  std::string word;
  while (file >> word) {
    if (word == name + ":" && file >> word) return std::stoll(word);
  }
  return -1;
}

// A new memory "m" of `layers` equal layers, numbered from 0. scale: of logits; 0: 1 / sqrt(dim). The caller closes it.
inline mneme_memory* CreateMemory(mneme_store* store, int layers, int q_heads, int kv_heads, int dim,
                                  int dtype = MNEME_DTYPE_F16, float scale = 0) {
  mneme_card* card = nullptr;
  Check(mneme_card_create("bench", "0", &card));
  for (int i = 0; i < layers; ++i) {
    mneme_layer_desc layer = MNEME_LAYER_DESC_INIT;
    layer.layer = i;
    layer.q_heads = q_heads;
    layer.kv_heads = kv_heads;
    layer.key_dim = layer.value_dim = dim;
    layer.scale = scale != 0 ? scale : 1.0f / std::sqrt(static_cast<float>(dim));
    Check(mneme_card_add_layer(card, &layer));
  }
  mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
  options.stored_dtype = dtype;
  mneme_memory* memory = nullptr;
  Check(mneme_memory_create(store, "m", card, &options, &memory));
  mneme_card_release(card);
  return memory;
}

}  // namespace mneme

#endif  // MNEME_BENCH_HOST_H_
