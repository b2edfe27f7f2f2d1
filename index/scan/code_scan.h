// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_CODE_SCAN_H_
#define MNEME_INDEX_SCAN_CODE_SCAN_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "index/key_rows.h"
#include "index/key_source.h"
#include "index/scan/key_codes.h"
#include "index/scan/ranking.h"
#include "index/scan/reordered_rows.h"
#include "index/scan/scan_counts.h"
#include "index/top_k.h"

namespace mneme {

// An exact top-k scan over codes. It reads the code of every row, which bounds the row's logit, and reads the exact
// keys of the few rows that may be among the k best: the candidates. The result equals that of ScanTopK bit for bit.
// docs/design/scan.md explains how.
//
// One object serves many scans, one after another, and keeps its buffers. Not thread-safe.
class CodeScan {
 public:
  CodeScan();
  ~CodeScan();
  CodeScan(const CodeScan&) = delete;
  CodeScan& operator=(const CodeScan&) = delete;

  // Begins a scan. queries: f32 [count, dim], row-major. top: [count], where rows are pushed. Both are used until End.
  // known_thresholds: [count], or null. For each query a logit that its k-th best row is known to reach, in this scan
  // or in another one whose result `top` is merged with; -infinity if none is known. It saves reading keys.
  void Begin(const float* queries, int64_t count, int64_t dim, const float* known_thresholds, TopK* top);

  // Adds rows [row_begin, row_end) of `keys`, with the arguments of ScanTopK. `key_codes` are codes of the same rows;
  // rows without a code are compared by their keys. `keys`, `key_codes` and the rankings' penalties are used until End.
  // Requires: all keys of a scan have the same dtype.
  void Add(const KeyRows& keys, const KeyCodes& key_codes, int64_t row_begin, int64_t row_end, int64_t first_token,
           const Ranking* rankings);

  // The same for keys that are not in RAM. As few of them are read as the codes allow. `keys` is used until End.
  void Add(KeySource& keys, const KeyCodes& key_codes, int64_t row_begin, int64_t row_end, int64_t first_token,
           const Ranking* rankings);

  // Adds the rows of chosen blocks, whose codes are not in the order of the rows. Row numbers are those of `keys`, of
  // the rankings' penalties and, with first_token added, of `top`. All that is given is used until End.
  // Requires: RisesWithDot() of every ranking.
  void AddReordered(KeySource& keys, const ReorderedRows& rows, int64_t first_token, const Ranking* rankings);

  // Ends the scan; `top` is complete. Errors: those of the KeySources, after which `top` means nothing.
  absl::StatusOr<ScanCounts> End();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// A CodeScan of one range of rows in RAM.
void ScanCodesTopK(const KeyRows& keys, const KeyCodes& key_codes, int64_t row_begin, int64_t row_end,
                   int64_t first_token, const float* queries, int64_t count, const Ranking* rankings,
                   const float* known_thresholds, TopK* top, ScanCounts* counts);

// Returns: the name of the kernels in use: "plain", "avx2", "avx512vnni" or "neon".
absl::string_view CodeScanKernelName();

}  // namespace mneme

#endif  // MNEME_INDEX_SCAN_CODE_SCAN_H_
