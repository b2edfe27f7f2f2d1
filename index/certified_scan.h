#ifndef MNEME_INDEX_CERTIFIED_SCAN_H_
#define MNEME_INDEX_CERTIFIED_SCAN_H_

#include <cstdint>

#include "absl/strings/string_view.h"

#include "index/code_kernel.h"
#include "index/key_codes.h"
#include "index/key_rows.h"
#include "index/scan.h"
#include "index/top_k.h"

namespace mneme {

// What scans did, for statistics: (query, row) pairs.
struct ScanCounts {
  int64_t by_code = 0;   // ruled out by what the row's code proves, or looked at …
  int64_t looked_at = 0;  // … since it could not be ruled out: the exact key was read
  int64_t by_key = 0;    // never had a code: the newest rows, and rankings that codes prove nothing about
};

// ScanTopK, answered from `key_codes` (of the same rows) wherever these prove that a row cannot be among the k best: the
// result is the same, bit for bit, whatever the codes are. Extend the codes first.
//
// floors: null, or for each query a logit that at least k rows of all that will be pushed into its `top` are known to
// reach (-infinity: none is known). It spares reading keys until `top` has filled.
void ScanCertified(const KeyRows& keys, const KeyCodes& key_codes, int64_t row_begin, int64_t row_end,
                   int64_t first_token, const float* queries, int64_t count, const Ranking* rankings,
                   const float* floors, TopK* top, ScanCounts* counts);

// The kernels chosen for this CPU, as ScanKernelName: "plain", "avx2", "avx512vnni" or "neon".
absl::string_view CodeKernelName();

namespace codes {

// `name` among those this build has and this CPU can run, else null.
const Kernels* FindKernels(absl::string_view name);

// Makes the process use `kernels`; null: the best of this CPU again. For tests, while nothing scans.
void UseKernelsForTesting(const Kernels* kernels);

}  // namespace codes
}  // namespace mneme

#endif  // MNEME_INDEX_CERTIFIED_SCAN_H_
