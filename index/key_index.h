// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_KEY_INDEX_H_
#define MNEME_INDEX_KEY_INDEX_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace mneme {

class RowGroups;

// Numbers equal mneme_index_kind of the C ABI.
enum class IndexKind : uint8_t {
  kAuto = 0,
  kScan = 1,  // exact, mneme's own
  kFlat = 2,  // exact, FAISS
  kIvf = 3,
  kIvfPq = 4,
  kHnsw = 5,
  kFactory = 6,  // any FAISS factory string of the allowed kinds
  // The same on a GPU, by FAISS; on the host where no device takes them.
  kGpuFlat = 16,
  kGpuIvf = 17,
  kGpuIvfPq = 18,
  kGpuCagra = 19,
};

// One of the kinds that FAISS serves from a device.
bool IsGpuKind(IndexKind kind);

// What to build. Zero numbers choose a default from the number of rows and dims.
struct IndexSpec {
  IndexKind kind = IndexKind::kAuto;
  int32_t lists = 0;         // ivf, ivfpq: inverted lists
  int32_t probes = 0;        // ivf, ivfpq: lists looked at
  int32_t pq_bytes = 0;      // ivfpq: code bytes a row
  int32_t graph_degree = 0;  // hnsw: links a row
  int32_t ef_construction = 0;
  int32_t ef_search = 0;
  int32_t scratch_mib = 0;  // gpu kinds: FAISS's scratch memory on the device, MiB for each of a few searches at once
  std::string factory;      // kFactory
};

// "auto", "scan", "flat", "ivf", "ivfpq", "hnsw", "gpu-flat", … with optional numbers
// ("ivf,lists=256,probes=32", "hnsw,degree=32,ef_search=128"), or "faiss:<factory string>".
// InvalidArgument says what was expected; Unimplemented for a gpu kind that is not built in: what is missing, and the
// kind that does the same without it.
absl::StatusOr<IndexSpec> ParseIndexSpec(absl::string_view text);
std::string FormatIndexSpec(const IndexSpec& spec);

// An approximate (or exact) answer to "which rows fit this query?" over a fixed set of rows numbered from 0. Rows with
// equal keys form a group, which is indexed and found once. Search is const and thread-safe.
class KeyIndex {
 public:
  virtual ~KeyIndex() = default;

  virtual int64_t rows() const = 0;
  virtual int64_t dim() const = 0;
  virtual bool exact() const = 0;

  // Where it is searched: "host", "cuda:0", or for a gpu kind that no device took "host (…)" with the reason.
  virtual std::string Where() const { return "host"; }

  // The rows of each group; null if all keys differ, and each row is a group of its own with the row's number.
  virtual const RowGroups* groups() const { return nullptr; }

  // The (about) `fetch` groups of greatest inner product for each of `count` queries (f32 [count, dim]):
  // group numbers, best first, into found [count, fetch]; -1 pads. The caller re-ranks them with the exact keys.
  // An index on a GPU finds at most as many groups as FAISS selects there (2048), and one thread at a time is served.
  // Only with it may queries and `found` lie in device memory: queries must be complete when this is called and are not
  // looked at for what is not finite; `found` is complete when it returns, and nothing has passed the host.
  virtual absl::Status Search(const float* queries, int64_t count, int64_t fetch, int64_t* found) const = 0;

  // A blob that LoadKeyIndex reads back to an index which gives the same results.
  virtual absl::StatusOr<std::string> Serialize() const = 0;

  // Of the host or the device.
  virtual size_t MemoryBytes() const = 0;
};

// Builds an index over keys f32 [rows, dim]; deterministic for the same input on the same machine. kScan and kAuto are
// not built here (they need no structure): InvalidArgument. A gpu kind goes to the device that is the calling thread's
// current one, with lists trained there; its blobs are those of the kind of the same name on the host.
absl::StatusOr<std::unique_ptr<KeyIndex>> BuildKeyIndex(const IndexSpec& spec, const float* keys, int64_t rows,
                                                        int64_t dim);

// Reads a blob that Serialize wrote. Its header (magic, version, kind, dims, rows, checksum) is verified before
// the payload is parsed: DataLoss if damaged, FailedPrecondition if it is of another spec, dim or row count.
absl::StatusOr<std::unique_ptr<KeyIndex>> LoadKeyIndex(const IndexSpec& spec, absl::string_view blob, int64_t rows,
                                                       int64_t dim);

// "1.7.3", "1.15.0 with GPU", "1.15.0 with GPU, no device": what was found when first asked.
absl::string_view FaissVersion();

}  // namespace mneme

#endif  // MNEME_INDEX_KEY_INDEX_H_
