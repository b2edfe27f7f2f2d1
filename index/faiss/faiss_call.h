// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_FAISS_FAISS_CALL_H_
#define MNEME_INDEX_FAISS_FAISS_CALL_H_

// Internal to index/: how FAISS is called. FAISS reports errors by exceptions; CallFaiss is the one place that turns
// them into Status.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <new>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

#include "base/dtype.h"
#include "base/out_of_memory.h"

namespace mneme {

// While it lives, FAISS runs in the calling thread alone, because the host lends it no other threads. The setting
// belongs to the calling thread, so concurrent searches do not affect each other.
class OneOpenMpThread {
 public:
  OneOpenMpThread() : saved_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneOpenMpThread() { omp_set_num_threads(saved_); }
  OneOpenMpThread(const OneOpenMpThread&) = delete;
  OneOpenMpThread& operator=(const OneOpenMpThread&) = delete;

 private:
  const int saved_;
};

// Runs call(), which may throw. `what` begins the message of an error.
// Errors: ResourceExhausted for std::bad_alloc, Internal for any other exception.
template <typename Call>
absl::Status CallFaiss(absl::string_view what, Call&& call) {
  const OneOpenMpThread one;
  try {
    call();
    return absl::OkStatus();
  } catch (const std::bad_alloc&) {
    return OutOfMemoryError(what);
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat(what, ": FAISS: ", error.what()));
  } catch (...) {
    return absl::InternalError(absl::StrCat(what, ": FAISS: unknown exception"));
  }
}

// Checks the arguments of a search. queries: f32 [count, dim]; null if the host cannot read them.
// Errors: InvalidArgument for negative numbers and for queries that are not finite.
inline absl::Status CheckSearch(const float* queries, int64_t count, int64_t fetch, int64_t dim) {
  if (count < 0 || fetch < 0) {
    return absl::InvalidArgumentError(absl::StrCat("count ", count, " and fetch ", fetch, " must not be negative"));
  }
  if (queries != nullptr && count > 0 && fetch > 0 &&
      !AllFinite(DType::kF32, queries, static_cast<size_t>(count * dim))) {
    return absl::InvalidArgumentError("queries must be finite");
  }
  return absl::OkStatus();
}

// Copies labels [count, found] to rows [count, fetch], filled up with -1.
inline void PadRows(const int64_t* labels, int64_t count, int64_t found, int64_t fetch, int64_t* rows) {
  for (int64_t i = 0; i < count; ++i) {
    std::copy_n(labels + i * found, found, rows + i * fetch);
    std::fill_n(rows + i * fetch + found, fetch - found, int64_t{-1});
  }
}

}  // namespace mneme

#endif  // MNEME_INDEX_FAISS_FAISS_CALL_H_
