// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_SRC_GGUF_FILE_H_
#define MNEME_HOSTS_LLAMACPP_SRC_GGUF_FILE_H_

#include <string>

#include "hosts/llamacpp/src/status.h"

namespace mneme::llama {

// A model file's fingerprint: "gguf-" and 16 hex digits.
//
// It covers the file's size, all of its metadata (names, types and shapes of tensors included) and of
// every tensor 16 evenly spread pieces of 4 KiB: it changes with another model, training state or quantisation, stays
// cheap for large files (tens of MB are read), and is no defence against someone who wants two files to look the same.
Status ReadFingerprint(const std::string& path, std::string* fingerprint);

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_SRC_GGUF_FILE_H_
