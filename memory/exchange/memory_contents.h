// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_EXCHANGE_MEMORY_CONTENTS_H_
#define MNEME_MEMORY_EXCHANGE_MEMORY_CONTENTS_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "base/model_card.h"
#include "memory/exchange/safetensors.h"
#include "storage/manifest.h"

namespace mneme {

// What an exported memory is made of, beside the bytes of its tensors. docs/exchange.md describes the file.
struct MemoryContents {
  std::string name;
  ModelCard card;
  MemoryOptions options;
  int64_t next_token = 0;
  int64_t first_kept = 0;                  // tokens [options.pinned_tokens, first_kept) are evicted
  std::vector<AttachmentRef> attachments;  // their ids mean nothing here

  // Returns: how many tokens are held, and so the rows of every tensor of rows.
  int64_t HeldTokens() const;
  // Returns: the ranges [first, second) of token indices that are held, at most two, in order.
  std::vector<std::pair<int64_t, int64_t>> HeldRanges() const;
};

// The tensors of an exported memory, by what they hold. Scales are there for kI8 alone.
enum class TensorKind { kPositions, kTokenIds, kKeys, kKeyScales, kValues, kValueScales, kAttachment };

struct ExchangeTensor {
  TensorKind kind;
  size_t place = 0;   // of its layer in the card, or of its attachment
  TensorEntry entry;  // name, type and shape; without its place in a file
};

// Returns: all tensors in the order in which they are written.
std::vector<ExchangeTensor> TensorsOf(const MemoryContents& contents);

// The texts that describe a memory in the header of a file. `checksums` has the content hash of each tensor by its
// name.
using TensorChecksums = std::map<std::string, uint64_t>;
// Errors: FailedPrecondition for a name that is not UTF-8, since JSON cannot hold it.
absl::StatusOr<std::map<std::string, std::string>> FormatMetadata(const MemoryContents& contents,
                                                                  const TensorChecksums& checksums);

// Reads what FormatMetadata has written; the texts may be anything. Checksums may be missing, then *checksums is empty.
// Errors: InvalidArgument, which names the text, what was expected and what came.
absl::StatusOr<MemoryContents> ParseMetadata(const std::map<std::string, std::string>& metadata,
                                             TensorChecksums* checksums);

}  // namespace mneme

#endif  // MNEME_MEMORY_EXCHANGE_MEMORY_CONTENTS_H_
