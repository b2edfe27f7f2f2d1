// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_SRC_GGUF_FILE_H_
#define MNEME_HOSTS_LLAMACPP_SRC_GGUF_FILE_H_

#include <string>
#include <vector>

#include "hosts/llamacpp/src/status.h"

namespace mneme::llama {

// What llama.h does not hand out of a model's file.
struct GgufFacts {
  std::string fingerprint;           // "gguf-" and 16 hex digits
  std::vector<float> rope_divisors;  // tensor rope_freqs.weight; empty if there is none
};

// The fingerprint covers the file's size, all of its metadata (names, types and shapes of tensors included) and of
// every tensor 16 evenly spread pieces of 4 KiB: it changes with another model, training state or quantisation, stays
// cheap for large files (tens of MB are read), and is no defence against someone who wants two files to look the same.
Status ReadGgufFile(const std::string& path, GgufFacts* facts);

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_SRC_GGUF_FILE_H_
