// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_EXCHANGE_EXPORT_MEMORY_H_
#define MNEME_MEMORY_EXCHANGE_EXPORT_MEMORY_H_

#include "absl/status/status.h"

#include "memory/exchange/tensor_writer.h"
#include "memory/memory.h"
#include "memory/progress.h"

namespace mneme {

// Writes the whole tokens that a memory has now, and its attachments, as safetensors. Tokens that come meanwhile are
// not part of it. Holds a chunk of one layer in RAM. `progress` counts bytes. Errors: those of TensorWriter and
// Database; Unavailable if an attachment is replaced meanwhile; Cancelled.
absl::Status ExportMemory(const Memory& memory, const TensorWriter::Options& options, const Progress& progress);

}  // namespace mneme

#endif  // MNEME_MEMORY_EXCHANGE_EXPORT_MEMORY_H_
