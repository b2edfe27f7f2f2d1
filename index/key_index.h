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

// The face of FAISS in mneme: approximate and exact indices over a fixed set of keys. index/README.md says what else
// the rest of the tree may include.

namespace mneme {

class CentroidIndex;
class RowGroups;

// Numbers equal mneme_index_kind of the C ABI.
enum class IndexKind : uint8_t {
  kAuto = 0,
  kScan = 1,  // exact, mneme's own
  kFlat = 2,  // exact, FAISS
  kIvf = 3,
  kIvfPq = 4,
  kHnsw = 5,
  kFactory = 6,   // a FAISS factory string; ParseIndexSpec says which
  kCentroid = 7,  // clusters of keys with a bounded miss, mneme's own
  // FAISS on a GPU, or on the host if no device takes the index.
  kGpuFlat = 16,
  kGpuIvf = 17,
  kGpuIvfPq = 18,
  kGpuCagra = 19,
};

// Whether `kind` is one of the kinds on a GPU.
bool IsGpuKind(IndexKind kind);

// What to build. A number that is 0 gets a default by the number of rows and dimensions.
struct IndexSpec {
  IndexKind kind = IndexKind::kAuto;
  int32_t lists = 0;            // ivf, ivfpq: inverted lists
  int32_t probes = 0;           // ivf, ivfpq: lists searched
  int32_t pq_bytes = 0;         // ivfpq: bytes of a row's code
  int32_t graph_degree = 0;     // hnsw: links of a row
  int32_t ef_construction = 0;  // hnsw: candidates while building
  int32_t ef_search = 0;        // hnsw: candidates while searching
  int32_t scratch_mib =
      0;  // gpu kinds: FAISS's scratch memory on the device, MiB for each of up to four searches at once
  int32_t cluster_rows = 0;  // centroid: rows of a cluster
  float outliers = -1;       // centroid: share of the rows that every query scans; negative: the default
  float max_miss = -1;   // centroid: share of the k best rows' attention that a search may miss; negative: the default
  float max_share = -1;  // centroid: share of the rows that a search scans at most; negative: the default
  std::string factory;   // kFactory
};

// Parses "auto", "scan", "centroid", "flat", "ivf", "ivfpq", "hnsw", "gpu-flat", …, with optional numbers
// ("ivf,lists=256,probes=32", "centroid,max_miss=0.02"), or "faiss:<factory string>".
// Errors: InvalidArgument with what was expected. Unimplemented for a gpu kind that is not built in, with what is
// missing and the kind that does the same on the CPU.
absl::StatusOr<IndexSpec> ParseIndexSpec(absl::string_view text);
std::string FormatIndexSpec(const IndexSpec& spec);

// An index over a fixed set of keys, whose rows are numbered from 0. Rows with equal keys form a group, which is
// indexed and found once. Thread-safe.
class KeyIndex {
 public:
  virtual ~KeyIndex() = default;

  virtual int64_t rows() const = 0;
  virtual int64_t dim() const = 0;
  // Whether Search finds the very best groups.
  virtual bool exact() const = 0;

  // Where it is searched: "host", "cuda:0", or for a gpu kind that no device took, "host (…)" with the reason.
  virtual std::string Where() const { return "host"; }

  // The rows of each group. Null if all keys differ: then group numbers are row numbers.
  virtual const RowGroups* groups() const { return nullptr; }

  // This index if it is of kind centroid, which scores rows by itself (index/centroid/centroid_search.h); else null.
  virtual const CentroidIndex* AsCentroid() const { return nullptr; }

  // Finds, for each query, about the `fetch` groups with the greatest inner product, for the caller to rerank by exact
  // keys.
  //   queries  f32 [count, dim]
  //   found    [count, fetch] group numbers, best first, filled up with -1
  // Errors: InvalidArgument for negative numbers and for queries that are not finite; ResourceExhausted; Internal with
  // FAISS's message.
  //
  // An index on a GPU finds at most 2048 groups, as many as FAISS selects there, and serves one thread at a time. Only
  // for such an index may `queries` and `found` lie in device memory: then queries must be complete when this is called
  // and are not checked for being finite, and `found` is complete when it returns.
  virtual absl::Status Search(const float* queries, int64_t count, int64_t fetch, int64_t* found) const = 0;

  // Returns: a blob that LoadKeyIndex reads. The index read gives the same results.
  virtual absl::StatusOr<std::string> Serialize() const = 0;

  // Bytes held on the host or the device.
  virtual size_t MemoryBytes() const = 0;
};

// Builds an index over keys, f32 [rows, dim]. Deterministic for the same input on the same machine. A gpu kind is
// trained on and copied to the calling thread's current device; its blobs are those of the kind of the same name on the
// host. Errors: InvalidArgument for kScan and kAuto, which have no structure, for keys that are not finite, and for
// numbers that do not fit the keys; Unimplemented for a gpu kind that is not built in; ResourceExhausted; Internal.
absl::StatusOr<std::unique_ptr<KeyIndex>> BuildKeyIndex(const IndexSpec& spec, const float* keys, int64_t rows,
                                                        int64_t dim);

// Reads a blob that Serialize wrote. The header (magic, version, kind, dimension, rows, checksum) is verified before
// the rest is parsed. Errors: DataLoss if the blob is damaged; FailedPrecondition if it is of another spec, dimension
// or row count; those of BuildKeyIndex.
absl::StatusOr<std::unique_ptr<KeyIndex>> LoadKeyIndex(const IndexSpec& spec, absl::string_view blob, int64_t rows,
                                                       int64_t dim);

// Returns: "1.7.3", "1.15.0 with GPU" or "1.15.0 with GPU, no device", as found in the first call.
absl::string_view FaissVersion();

}  // namespace mneme

#endif  // MNEME_INDEX_KEY_INDEX_H_
