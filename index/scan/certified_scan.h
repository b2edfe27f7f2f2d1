// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_CERTIFIED_SCAN_H_
#define MNEME_INDEX_SCAN_CERTIFIED_SCAN_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "index/key_rows.h"
#include "index/key_source.h"
#include "index/scan/key_codes.h"
#include "index/scan/scan.h"
#include "index/top_k.h"

namespace mneme {

// What scans did, for statistics: (query, row) pairs.
struct ScanCounts {
  int64_t by_code = 0;    // ruled out by what the row's code proves, or looked at …
  int64_t looked_at = 0;  // … since it could not be ruled out: the exact key was read
  int64_t by_key = 0;     // never had a code: the newest rows, and rankings that codes prove nothing about
  int64_t repeated = 0;   // scanned a second time, since the k best were not as good as codes had it look
};

// ScanTopK over several ranges of rows, answered from their codes wherever these prove that a row cannot be among the k
// best: the result is the same, bit for bit, whatever the codes are. One object serves many scans, one after another,
// and keeps its buffers. Not thread-safe.
class CertifiedScan {
 public:
  CertifiedScan();
  ~CertifiedScan();
  CertifiedScan(const CertifiedScan&) = delete;
  CertifiedScan& operator=(const CertifiedScan&) = delete;

  // queries: f32 [count, dim], row-major; top: [count], where rows are pushed. Both are used until End.
  // floors: null, or for each query a logit that the worst of the k best is known to reach, be it found here or by
  // another scan that `top` is merged with (-infinity: none is known). It spares reading keys until `top` has filled.
  void Begin(const float* queries, int64_t count, int64_t dim, const float* floors, TopK* top);

  // Rows [row_begin, row_end) of `keys`, as ScanTopK; `key_codes` are of the same rows, Extend them first. `keys` and
  // the penalties are used until End. All keys are of one dtype.
  void Add(const KeyRows& keys, const KeyCodes& key_codes, int64_t row_begin, int64_t row_end, int64_t first_token,
           const Ranking* rankings);

  // The same for keys that are not in memory, of which as few are read as the codes allow. Used until End.
  void Add(KeySource& keys, const KeyCodes& key_codes, int64_t row_begin, int64_t row_end, int64_t first_token,
           const Ranking* rankings);

  // `top` is complete when this returns OK. Errors are those of KeySources.
  absl::StatusOr<ScanCounts> End();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// The same for one range of rows.
void ScanCertified(const KeyRows& keys, const KeyCodes& key_codes, int64_t row_begin, int64_t row_end,
                   int64_t first_token, const float* queries, int64_t count, const Ranking* rankings,
                   const float* floors, TopK* top, ScanCounts* counts);

// The kernels chosen for this CPU, as ScanKernelName: "plain", "avx2", "avx512vnni" or "neon".
absl::string_view CodeKernelName();

}  // namespace mneme

#endif  // MNEME_INDEX_SCAN_CERTIFIED_SCAN_H_
